//! What the grammar accepts, what matches, and containerd's words for what is refused.

use std::collections::BTreeMap;

use super::*;

fn object(path: &[&str]) -> Option<String> {
    let labels = BTreeMap::from([
        ("env".to_owned(), "prod".to_owned()),
        ("a.b/c".to_owned(), "x y".to_owned()),
        ("empty".to_owned(), String::new()),
    ]);
    match path {
        ["name"] => text("docker.io/library/busybox:latest"),
        ["topic"] => text("/tasks/exit"),
        ["nothing"] => text(""),
        ["labels", rest @ ..] => label(&labels, rest),
        _ => None,
    }
}

fn chosen(filters: &[&str]) -> bool {
    Filter::parse(filters).unwrap().matches(&object)
}

#[test]
fn operators() {
    for (filter, expected) in [
        ("", true),
        ("name", true),
        ("nothing", false),
        ("labels.env", true),
        ("labels.empty", true),
        ("labels.other", false),
        ("name==docker.io/library/busybox:latest", true),
        ("name == docker.io/library/busybox:latest", true),
        ("labels.env!=prod", false),
        ("labels.other!=prod", true),
        ("labels.other==", false),
        ("labels.env~=^p.*d$", true),
        ("labels.env~=^x", false),
        ("topic~=|^/tasks/|", true),
        ("topic~=/exit$/", true),
        ("labels.other~=^$", true),
        ("name~=(", false),
        (r#"labels."a.b/c"=="x y""#, true),
        (r#"labels."a.b/c"=="x\u0020y""#, true),
        (r#"labels."a.b/c"=="\x78\040y""#, true),
        ("name,labels.env==prod", true),
        ("name,labels.env==dev", false),
        ("labels.env==prod,topic~=|exit|", true),
    ] {
        match Filter::parse(&[filter]) {
            Ok(parsed) => assert_eq!(parsed.matches(&object), expected, "{filter}"),
            Err(error) => assert_eq!(filter, "labels.other==", "{error}"),
        }
    }
}

#[test]
fn one_of_several_is_enough() {
    assert!(chosen(&[]));
    assert!(chosen(&["labels.env==dev", "labels.env==prod"]));
    assert!(!chosen(&["labels.env==dev", "labels.env==test"]));
    assert!(chosen(&["labels.env==dev", ""]));
}

#[test]
fn says_what_it_refuses_in_containerds_words() {
    for (filter, expected) in [
        ("a..b", "[a. >|.|< b]: expected field or quoted"),
        ("a=b", r#"[a >|=|< b]: unsupported operator "=""#),
        ("a==", "[a==]: expected value or quoted"),
        ("a b", r#"[a  >|b|< ]: expected an operator ("=="|"!="|"~=")"#),
        ("a==|x|", "[a== >|||< x|]: invalid quote encountered"),
        (r#"a=="x"#, r#"[a== >|"|< x]: quoted literal not terminated"#),
        (r"a~=|\d|", r"[a~= >|||< \d|]: illegal escape sequence"),
        (r#"a=="\xz""#, r#"[a== >|"|< \xz"]: illegal numeric escape sequence"#),
        ("a==b c", "[a==b >| |< c]: unexpected input:  "),
        (",", "[ >|,|< ]: expected field or quoted"),
        ("a,", "[a,]: expected field or quoted"),
        ("a==.b", "[a== >|.|< b]: expected value or quoted"),
        ("a@b", r#"[a >|@|< b]: expected an operator ("=="|"!="|"~=")"#),
        ("a.", "[a.]: expected field or quoted"),
        (r#""a"#, r#"[ >|"|< a]: quoted literal not terminated"#),
        ("a ", r#"[a ]: expected an operator ("=="|"!="|"~=")"#),
        ("a==b ,c", "[a==b >| |< ,c]: unexpected input:  "),
    ] {
        let error = Filter::parse(&[filter]).unwrap_err();
        assert_eq!(error.kind(), Kind::InvalidArgument);
        assert_eq!(
            error.to_string(),
            format!("filters: parse error: {expected}: invalid argument: invalid argument"),
            "{filter}"
        );
    }
}

#[test]
fn unquotes_as_go_does() {
    assert_eq!(scan::unquote(r#""a\"b""#).as_deref(), Some("a\"b"));
    assert_eq!(scan::unquote(r"|a\|b|").as_deref(), Some("a|b"));
    assert_eq!(scan::unquote(r#""\xe2\x82\xac""#).as_deref(), Some("€"));
    assert_eq!(scan::unquote(r#""\ud800""#).as_deref(), Some("\u{fffd}"));
    assert_eq!(scan::unquote(r#""\U00110000""#), None);
    assert_eq!(scan::unquote(r#"""#), None);
}
