//! What a program's output says.

use orlop_tests::Output;

/// What is wrong, if anything: a bad exit code, an assertion that does not hold, or an error that belongs to no assertion.
pub fn problem(out: &Output) -> Option<String> {
    let is_good = out.status.success() && is_good(&out.stdout);
    (!is_good).then(|| out.to_string())
}

fn is_good(stdout: &str) -> bool {
    let mut assertion = false;
    for line in stdout.lines() {
        match line {
            line if line.starts_with("not ok") => return false,
            line if line.starts_with("ok ") => assertion = true,
            line if line.trim_start().starts_with("\"error\":") && !assertion => return false,
            // The end of an assertion's diagnostic block.
            "  ..." => assertion = false,
            _ => {}
        }
    }
    true
}

#[test]
fn an_error_without_an_assertion_is_a_failure() {
    assert!(is_good("TAP version 13\nok 1 - refused\n  ---\n  {\n    \"error\": \"x\"\n  }\n  ...\n1..1\n"));
    assert!(!is_good("TAP version 13\n  ---\n  {\n    \"error\": \"x\"\n  }\n  ...\n1..0\n"));
    assert!(!is_good("ok 1 - a\n  ---\n  ...\n  ---\n    \"error\": \"x\"\n  ...\n1..1\n"));
    assert!(!is_good("ok 1 - a\nnot ok 2 - b\n1..2\n"));
}
