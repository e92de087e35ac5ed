//! Help as text, from the table.

use std::fmt::Write;

use super::table::{Flag, GLOBAL, HELP, Takes, VERBS, Verb};

/// What the program is, and its verbs.
pub fn program() -> String {
    let mut text = String::from(
        "NAME:\n   orlop - Open Container Initiative runtime\n\nUSAGE:\n   orlop [global options] command [command options] \
         [arguments...]\n\nCOMMANDS:\n",
    );
    let verbs: Vec<_> = VERBS.iter().map(|verb| (verb.name.to_owned(), verb.about)).collect();
    table(&mut text, &verbs);
    text.push_str("   help, h     Show this, or the flags of a command\n\nGLOBAL OPTIONS:\n");
    options(&mut text, GLOBAL.iter());
    text
}

/// What a verb does, and its flags.
pub fn verb(verb: &Verb) -> String {
    let mut text =
        format!("NAME:\n   orlop {} - {}\n\nUSAGE:\n   orlop {}", verb.name, verb.about, verb.name);
    if verb.flags.iter().any(|flag| !flag.hidden) {
        text.push_str(" [command options]");
    }
    // Writing to a string cannot fail.
    let _ = writeln!(text, " {}\n\nOPTIONS:", verb.operands);
    options(&mut text, verb.flags.iter().chain([&HELP]));
    text
}

fn options<'a>(text: &mut String, flags: impl Iterator<Item = &'a Flag>) {
    let shown = |flag: &'a Flag| {
        let value = if flag.takes == Takes::Nothing { String::new() } else { format!(" {}", flag.value) };
        let short = flag.short.map(|short| format!(", -{short}{value}")).unwrap_or_default();
        (format!("--{}{value}{short}", flag.name), flag.help)
    };
    let rows: Vec<_> = flags.filter(|flag| !flag.hidden).map(shown).collect();
    table(text, &rows);
}

fn table(text: &mut String, rows: &[(String, &str)]) {
    let width = rows.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0).max(10);
    for (name, help) in rows {
        let _ = writeln!(text, "   {name:width$}  {help}");
    }
}
