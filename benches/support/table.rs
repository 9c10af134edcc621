//! A table of right-aligned columns, printed row by row.

/// A column: its title, under its group's title, and its width.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Column<'a> {
    /// Printed above the first column of the group, over the titles.
    pub(crate) group: &'a str,
    /// Its own title.
    pub(crate) title: &'a str,
    /// Characters.
    pub(crate) width: usize,
}

/// The titles and the line under them.
pub(crate) fn header(columns: &[Column]) -> String {
    let titles: Vec<String> = columns.iter().map(|c| c.title.to_owned()).collect();
    let titles = row(columns, &titles);
    let mut groups = String::new();
    let mut at = 0;
    for (i, column) in columns.iter().enumerate() {
        let start = at + usize::from(i > 0) * 2;
        if !column.group.is_empty() {
            // Over the title itself, which stands at the right of its column.
            let text = start + column.width.saturating_sub(column.title.chars().count());
            let gap = text.saturating_sub(groups.chars().count());
            groups.push_str(&" ".repeat(gap));
            groups.push_str(column.group);
        }
        at = start + column.width;
    }
    format!("{groups}\n{titles}\n{}", "-".repeat(titles.chars().count()))
}

/// One row.
pub(crate) fn row(columns: &[Column], cells: &[String]) -> String {
    let cells =
        columns.iter().zip(cells).map(|(column, cell)| format!("{cell:>width$}", width = column.width));
    cells.collect::<Vec<_>>().join("  ")
}
