//! `list`: the containers below the root directory.

use orlop_proto::contract::state::ContainerState;
use orlop_proto::error::{Error, Result};
use orlop_proto::kind::Kind;

use super::{encode, print};
use crate::cli::Global;
use crate::container::Container;

/// Prints the containers.
pub fn run(global: &Global, format: &str, quiet: bool) -> Result<()> {
    let mut states = Vec::new();
    for id in orlop_host::state::list(&global.root)? {
        match Container::open(&global.root, &id) {
            Ok(container) => states.push(container.describe(container.owner())?),
            // One that is just being made, or has just been deleted.
            Err(error) if error.kind() == Kind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    if quiet {
        let ids: String = states.iter().map(|state| format!("{}\n", state.id)).collect();
        return print(ids.as_bytes());
    }
    match format {
        "table" => print(table(&states).as_bytes()),
        "json" if states.is_empty() => print(b"null\n"),
        "json" => {
            let mut text = encode(&states)?;
            text.push(b'\n');
            print(&text)
        }
        _ => Err(Error::exactly(Kind::InvalidArgument, "invalid format option")),
    }
}

/// Columns as Go's tabwriter aligns them for runc: at least 12 wide, three spaces after the longest.
fn table(states: &[ContainerState]) -> String {
    let header = ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"].map(str::to_owned);
    let rows = states.iter().map(|state| {
        [
            state.id.clone(),
            state.pid.to_string(),
            state.status.to_string(),
            state.bundle.clone(),
            state.created.clone(),
            state.owner.clone(),
        ]
    });
    let rows: Vec<_> = std::iter::once(header).chain(rows).collect();
    let width = |column: usize| {
        let longest = rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        (longest + 3).max(12)
    };
    let widths = [0, 1, 2, 3, 4].map(width);
    let mut text = String::new();
    for row in &rows {
        for (cell, width) in row.iter().zip(widths) {
            text.push_str(&format!("{cell:width$}"));
        }
        text.push_str(&row[5]);
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_runcs() {
        assert_eq!(table(&[]), "ID          PID         STATUS      BUNDLE      CREATED     OWNER\n");
    }
}
