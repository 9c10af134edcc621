//! Line charts as SVG text: nothing beyond a string is needed to write them.

use std::fmt::Write as _;

/// One line of a chart.
pub(crate) struct Series {
    pub(crate) label: String,
    pub(crate) points: Vec<(f64, f64)>,
}

/// One chart.
pub(crate) struct Chart {
    pub(crate) title: String,
    pub(crate) x_label: String,
    pub(crate) y_label: String,
    pub(crate) series: Vec<Series>,
    /// A level that the lines are compared with, drawn dashed. What lies far above it is cut off.
    pub(crate) reference: Option<(String, f64)>,
}

/// Told apart by colour-blind readers too (Okabe and Ito, 2008).
const COLOURS: [&str; 6] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"];
const WIDTH: f64 = 560.0;
const HEIGHT: f64 = 430.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 62.0;
const BOTTOM: f64 = 58.0;

/// The charts side by side below a title.
pub(crate) fn svg(title: &str, charts: &[Chart]) -> String {
    let charts: Vec<_> =
        charts.iter().filter(|chart| chart.series.iter().any(|line| !line.points.is_empty())).collect();
    let (width, height) = (WIDTH * charts.len().max(1) as f64, HEIGHT + 34.0);
    let mut out = String::new();
    let _ = write!(
        out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\" \
         font-family=\"Helvetica, Arial, 'DejaVu Sans', sans-serif\" font-size=\"12\" fill=\"#333\">\n\
         <rect width=\"{width}\" height=\"{height}\" fill=\"white\"/>\n\
         <text x=\"{LEFT}\" y=\"30\" font-size=\"17\" font-weight=\"bold\">{}</text>\n",
        escaped(title)
    );
    for (index, chart) in charts.iter().enumerate() {
        let _ = writeln!(out, "<g transform=\"translate({},34)\">", WIDTH * index as f64);
        draw(&mut out, chart, index);
        out.push_str("</g>\n");
    }
    out.push_str("</svg>\n");
    out
}

fn draw(out: &mut String, chart: &Chart, index: usize) {
    let (x_range, y_range) = ranges(chart);
    let (x_ticks, y_ticks) = (ticks(x_range, 6), ticks(y_range, 7));
    let x = |value: f64| LEFT + (value - x_range.0) / (x_range.1 - x_range.0) * (WIDTH - LEFT - RIGHT);
    let y = |value: f64| {
        HEIGHT - BOTTOM - (value - y_range.0) / (y_range.1 - y_range.0) * (HEIGHT - TOP - BOTTOM)
    };
    let (bottom, right) = (HEIGHT - BOTTOM, WIDTH - RIGHT);
    let _ = writeln!(
        out,
        "<clipPath id=\"c{index}\"><rect x=\"{LEFT}\" y=\"{TOP}\" width=\"{}\" height=\"{}\"/></clipPath>\n\
         <text x=\"{LEFT}\" y=\"{}\" font-size=\"14\">{}</text>",
        right - LEFT,
        bottom - TOP,
        TOP - 16.0,
        escaped(&chart.title)
    );
    for tick in &y_ticks.values {
        let at = y(*tick);
        let _ = writeln!(
            out,
            "<path d=\"M{LEFT} {at:.1}H{right}\" stroke=\"#e6e6e6\"/><text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            LEFT - 8.0,
            at + 4.0,
            y_ticks.label(*tick)
        );
    }
    for tick in &x_ticks.values {
        let at = x(*tick);
        let _ = writeln!(
            out,
            "<path d=\"M{at:.1} {bottom}v5\" stroke=\"#888\"/><text x=\"{at:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
            bottom + 19.0,
            thousands(*tick)
        );
    }
    let _ = writeln!(
        out,
        "<path d=\"M{LEFT} {bottom}H{right}\" stroke=\"#888\"/>\n\
         <text x=\"{}\" y=\"{}\" text-anchor=\"middle\">{}</text>\n\
         <text transform=\"translate(17,{}) rotate(-90)\" text-anchor=\"middle\">{}</text>",
        f64::midpoint(LEFT, right),
        bottom + 42.0,
        escaped(&chart.x_label),
        f64::midpoint(TOP, bottom),
        escaped(&chart.y_label)
    );
    let mut legend = Vec::new();
    if let Some((label, level)) = &chart.reference {
        let at = y(*level);
        let style = "stroke=\"#666\" stroke-width=\"1.5\" stroke-dasharray=\"6 4\"";
        let _ = writeln!(out, "<path d=\"M{LEFT} {at:.1}H{right}\" {style}/>");
        legend.push((label.as_str(), style.to_owned()));
    }
    for (line, colour) in chart.series.iter().zip(COLOURS.iter().cycle()) {
        let style = format!("stroke=\"{colour}\" stroke-width=\"2.2\" stroke-linejoin=\"round\"");
        let mut path = String::new();
        for (px, py) in line.points.iter().filter(|(_, value)| value.is_finite()) {
            let _ = write!(path, "{}{:.1} {:.1}", if path.is_empty() { 'M' } else { 'L' }, x(*px), y(*py));
        }
        let _ = writeln!(out, "<path d=\"{path}\" fill=\"none\" {style} clip-path=\"url(#c{index})\"/>");
        legend.push((line.label.as_str(), style));
    }
    // Losses fall, so the upper right corner is free.
    let longest = legend.iter().map(|(label, _)| label.chars().count()).max().unwrap_or(0) as f64;
    let (box_width, box_height) = (longest * 6.6 + 52.0, legend.len() as f64 * 19.0 + 10.0);
    let (left, top) = (right - box_width - 6.0, TOP + 8.0);
    let _ = writeln!(
        out,
        "<rect x=\"{left:.1}\" y=\"{top}\" width=\"{box_width:.1}\" height=\"{box_height}\" rx=\"4\" fill=\"white\" \
         fill-opacity=\"0.88\" stroke=\"#ddd\"/>"
    );
    for (row, (label, style)) in legend.iter().enumerate() {
        let at = top + 15.0 + 19.0 * row as f64;
        let _ = writeln!(
            out,
            "<path d=\"M{:.1} {at}h26\" {style}/><text x=\"{:.1}\" y=\"{}\">{}</text>",
            left + 8.0,
            left + 42.0,
            at + 4.0,
            escaped(label)
        );
    }
}

/// What the axes span. A line that begins far above the reference does not press the others flat.
fn ranges(chart: &Chart) -> ((f64, f64), (f64, f64)) {
    let points = || chart.series.iter().flat_map(|line| &line.points).filter(|point| point.1.is_finite());
    let x_max = points().map(|point| point.0).fold(0.0, f64::max);
    let level = chart.reference.as_ref().map(|reference| reference.1);
    let low = points().map(|point| point.1).chain(level).fold(f64::INFINITY, f64::min);
    let mut high = points().map(|point| point.1).chain(level).fold(f64::NEG_INFINITY, f64::max);
    if let Some(level) = level {
        high = high.min(level + 0.35 * (level - low).max(1e-3));
    }
    let margin = 0.06 * (high - low).max(1e-3);
    ((0.0, if x_max > 0.0 { x_max } else { 1.0 }), (low - margin, high + margin))
}

struct Ticks {
    values: Vec<f64>,
    decimals: usize,
}

impl Ticks {
    fn label(&self, value: f64) -> String {
        format!("{value:.*}", self.decimals)
    }
}

/// At most `most` round values inside a range: 1, 2 or 5 times a power of ten apart.
fn ticks((low, high): (f64, f64), most: usize) -> Ticks {
    let rough = (high - low) / most as f64;
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].map(|factor| factor * power).into_iter().find(|&step| step >= rough);
    let step = step.unwrap_or(10.0 * power);
    let first = (low / step).ceil() as i64;
    let last = (high / step).floor() as i64;
    let values = (first..=last).map(|tick| tick as f64 * step).collect();
    Ticks { values, decimals: (-step.log10().floor()).max(0.0) as usize }
}

/// 250000 as 250k.
fn thousands(value: f64) -> String {
    match value {
        v if v >= 1e6 => format!("{}M", trimmed(v / 1e6)),
        v if v >= 1e3 => format!("{}k", trimmed(v / 1e3)),
        v => trimmed(v),
    }
}

fn trimmed(value: f64) -> String {
    let text = format!("{value:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::{Chart, Series, ranges, svg, thousands, ticks};

    fn chart() -> Chart {
        let line =
            |label: &str, points: &[(f64, f64)]| Series { label: label.into(), points: points.to_vec() };
        Chart {
            title: "a < b".into(),
            x_label: "tokens".into(),
            y_label: "loss".into(),
            series: vec![
                line("one", &[(0.0, 2.0), (10.0, 1.0)]),
                line("two", &[(0.0, 9.0), (10.0, f64::NAN)]),
            ],
            reference: Some(("frozen".into(), 2.0)),
        }
    }

    #[test]
    fn a_chart_has_a_path_for_each_line_and_every_tag_is_closed() {
        let text = svg("t & u", &[chart()]);
        assert!(text.starts_with("<svg ") && text.trim_end().ends_with("</svg>"));
        assert!(text.contains("t &amp; u") && text.contains("a &lt; b"));
        assert_eq!(text.matches("clip-path=").count(), 2);
        assert!(text.contains("stroke-dasharray"));
        assert!(!text.contains("NaN") && !text.contains("inf"));
        for tag in ["g", "text", "clipPath", "svg"] {
            let opened =
                text.matches(&format!("<{tag} ")).count() + text.matches(&format!("<{tag}>")).count();
            assert_eq!(opened, text.matches(&format!("</{tag}>")).count(), "{tag}");
        }
    }

    #[test]
    fn the_reference_bounds_the_axis() {
        let (x, y) = ranges(&chart());
        assert_eq!(x, (0.0, 10.0));
        assert!(y.0 < 1.0 && y.1 > 2.0 && y.1 < 3.0, "{y:?}");
    }

    #[test]
    fn nothing_to_draw_is_an_empty_picture() {
        let mut empty = chart();
        empty.series.clear();
        assert!(!svg("nothing", &[empty]).contains("clip-path="));
    }

    #[test]
    fn ticks_are_round() {
        let found = ticks((0.13, 0.92), 7);
        let labels: Vec<_> = found.values.iter().map(|&tick| found.label(tick)).collect();
        assert_eq!(labels, ["0.2", "0.4", "0.6", "0.8"]);
        assert_eq!(
            (thousands(250_000.0), thousands(1_500_000.0), thousands(0.0)),
            ("250k".into(), "1.5M".into(), "0".into())
        );
    }
}
