//! The table at the end.

use crate::adapter::Method;
use crate::train::History;

/// What one method came to.
pub(crate) struct Outcome {
    pub(crate) method: Method,
    pub(crate) parameters: usize,
    pub(crate) learning_rate: f64,
    /// Held-out losses on the new domain, in nats per token.
    pub(crate) at_start: f64,
    pub(crate) after: f64,
    /// Held-out loss on what the model was trained on.
    pub(crate) old_domain: f64,
    pub(crate) history: History,
}

/// The frozen model, for comparison.
pub(crate) struct Frozen {
    pub(crate) parameters: usize,
    pub(crate) loss: f64,
    pub(crate) old_domain: f64,
    /// Loss on the windows that the curves are taken on.
    pub(crate) course: f64,
}

/// A Markdown table, columns aligned.
pub(crate) fn table(frozen: &Frozen, outcomes: &[Outcome]) -> String {
    let mut rows = vec![
        [
            "method", "trained", "of model", "rate", "before", "at start", "after", "change", "on code",
            "seconds", "tokens/s",
        ]
        .map(str::to_owned),
    ];
    rows.push([
        "frozen model".into(),
        "0".into(),
        "0 %".into(),
        String::new(),
        format!("{:.4}", frozen.loss),
        String::new(),
        format!("{:.4}", frozen.loss),
        String::new(),
        format!("{:.4}", frozen.old_domain),
        String::new(),
        String::new(),
    ]);
    for outcome in outcomes {
        rows.push([
            outcome.method.title().into(),
            outcome.parameters.to_string(),
            format!("{:.2} %", 100.0 * outcome.parameters as f64 / frozen.parameters as f64),
            outcome.learning_rate.to_string(),
            format!("{:.4}", frozen.loss),
            format!("{:.4}", outcome.at_start),
            format!("{:.4}", outcome.after),
            format!("{:+.1} %", 100.0 * (outcome.after / frozen.loss - 1.0)),
            format!("{:.4}", outcome.old_domain),
            format!("{:.1}", outcome.history.seconds),
            format!("{:.0}", outcome.history.tokens_per_second()),
        ]);
    }
    aligned(&rows)
}

fn aligned<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let mut lines = Vec::new();
    for (index, row) in rows.iter().enumerate() {
        let cells = row.iter().enumerate().map(|(column, cell)| {
            let width = width(column);
            if column == 0 { format!("| {cell:<width$} ") } else { format!("| {cell:>width$} ") }
        });
        lines.push(cells.collect::<String>() + "|\n");
        if index == 0 {
            let cells = (0..N).map(|column| {
                let dashes = "-".repeat(width(column));
                if column == 0 { format!("|-{dashes}-") } else { format!("|-{dashes}:") }
            });
            lines.push(cells.collect::<String>() + "|\n");
        }
    }
    lines.concat()
}

/// 1234567 as 1 234 567.
pub(crate) fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::{Frozen, Outcome, grouped, table};
    use crate::adapter::Method;
    use crate::train::History;

    #[test]
    fn columns_line_up_and_the_change_is_relative_to_the_frozen_model() {
        let outcome = Outcome {
            method: Method::Inducer,
            parameters: 500,
            learning_rate: 0.01,
            at_start: 2.0,
            after: 1.5,
            old_domain: 1.25,
            history: History { seconds: 2.0, tokens: 1000, steps: 1, curve: Vec::new() },
        };
        let text = table(&Frozen { parameters: 10_000, loss: 2.0, old_domain: 1.0, course: 2.0 }, &[outcome]);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 4);
        assert!(lines.iter().all(|line| line.len() == lines[0].len()));
        for cell in ["inducer-tuning", " 5.00 % ", " -25.0 % ", " 1.5000 ", " 500 "] {
            assert!(lines[3].contains(cell), "{cell}: {}", lines[3]);
        }
    }

    #[test]
    fn digits_are_grouped() {
        assert_eq!(
            ["0", "999", "1 000", "1 234 567"].map(str::to_owned),
            [0, 999, 1000, 1_234_567].map(grouped)
        );
    }
}
