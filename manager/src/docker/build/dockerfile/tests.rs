use super::*;

fn steps(text: &str) -> Vec<Command> {
    let dockerfile = Dockerfile::parse(&format!("FROM x\n{text}")).unwrap();
    dockerfile.stages[0].steps.iter().map(|step| step.command.clone()).collect()
}

fn wrong(text: &str) -> String {
    Dockerfile::parse(text).unwrap_err().to_string()
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|&word| word.to_owned()).collect()
}

#[test]
fn stages_have_names_and_platforms() {
    let dockerfile = Dockerfile::parse(
        "# escape=`\n# a comment\nARG V=1\nFROM --platform=linux/arm64 a:$V AS Build\nRUN one `\n  two\nfrom build\n",
    )
    .unwrap();
    assert_eq!(dockerfile.escape, '`');
    assert_eq!(dockerfile.arguments.len(), 1);
    let [first, second] = dockerfile.stages.as_slice() else { panic!("{:?}", dockerfile.stages) };
    assert_eq!(
        (first.base.as_str(), first.name.as_str(), first.platform.as_str()),
        ("a:$V", "build", "linux/arm64")
    );
    assert_eq!(first.steps[0].text, "RUN one   two");
    assert_eq!(second.base, "build");
    assert_eq!(dockerfile.find("BUILD"), Some(0));
    assert_eq!((dockerfile.find("1"), dockerfile.find("2"), dockerfile.find("x")), (Some(1), None, None));
}

#[test]
fn lines_are_joined_without_comments() {
    let text = "FROM x\nRUN a && \\\n# not this\n\n   b \\  \n c\nRUN d\\\\\nCMD e";
    let dockerfile = Dockerfile::parse(text).unwrap();
    let texts: Vec<&str> = dockerfile.stages[0].steps.iter().map(|step| step.text.as_str()).collect();
    assert_eq!(texts, ["RUN a &&    b  c", "RUN d\\\\", "CMD e"]);
    assert_eq!(dockerfile.warnings.len(), 1);
    assert_eq!(Dockerfile::parse("\u{feff}FROM x\r\nCMD a\r\n").unwrap().stages[0].steps[0].text, "CMD a");
}

#[test]
fn commands_have_two_forms() {
    let line = |words: &[&str], for_shell| Line { words: self::words(words), for_shell };
    assert_eq!(
        steps("CMD [\"a\", \"b c\"]\nENTRYPOINT a b\nCMD [a]\nCMD"),
        [
            Command::Cmd(line(&["a", "b c"], false)),
            Command::Entrypoint(line(&["a b"], true)),
            Command::Cmd(line(&["[a]"], true)),
            Command::Cmd(line(&[], true)),
        ]
    );
}

#[test]
fn variables_have_two_forms() {
    let pair = |key: &str, value: &str| Pair { key: key.into(), value: value.into(), is_literal: false };
    assert_eq!(
        steps("ENV A=1 B=\"x y\" C=z\\ z\nENV old the rest  is \"it\"\nLABEL a.b=\"c\"\nARG one two=2"),
        [
            Command::Env(vec![pair("A", "1"), pair("B", "\"x y\""), pair("C", "z\\ z")]),
            Command::Env(vec![pair("old", "the rest  is \"it\"")]),
            Command::Label(vec![pair("a.b", "\"c\"")]),
            Command::Arg(vec![("one".into(), None), ("two".into(), Some("2".into()))]),
        ]
    );
}

#[test]
fn heredocs_belong_to_their_line() {
    let text = "RUN <<EOF\necho one\n# stays\nEOF\nCOPY <<-\"A\" <<B /d/\n\tx $y\nA\n$z\nB\nRUN cat <<'E' > /f\n\\$v\nE\n";
    let [Command::Run(first), Command::Copy(copy), Command::Run(last)] = &steps(text)[..] else { panic!() };
    assert_eq!(first.heredocs[0].content, "echo one\n# stays\n");
    assert_eq!(copy.documents[0].text(), "x $y\n");
    assert!(!copy.documents[0].expand && copy.documents[1].expand);
    assert_eq!((copy.documents[1].name.as_str(), copy.target.as_str()), ("B", "/d/"));
    assert_eq!((last.line.words[0].as_str(), last.heredocs[0].name.as_str()), ("cat <<'E' > /f", "E"));
    assert_eq!(wrong("FROM x\nRUN <<EOF\na\n"), "dockerfile parse error on line 2: unterminated heredoc");
    assert!(
        matches!(&steps("RUN x <<< y\nRUN [\"a\", \"<<EOF\"]")[0], Command::Run(run) if run.heredocs.is_empty())
    );
}

#[test]
fn copies_have_sources_and_a_target() {
    let [Command::Copy(copy), Command::Add(add)] =
        &steps("COPY --from=b --chown=1:2 --chmod=755 a b c/\nADD [\"a b\", \"/c d\"]")[..]
    else {
        panic!()
    };
    assert_eq!((copy.sources.clone(), copy.target.as_str()), (words(&["a", "b"]), "c/"));
    assert_eq!((copy.from.as_str(), copy.chown.as_str(), copy.chmod.as_str()), ("b", "1:2", "755"));
    assert_eq!((add.sources.clone(), add.target.as_str()), (words(&["a b"]), "/c d"));
}

#[test]
fn health_checks_have_times() {
    let Command::Healthcheck(check) =
        &steps("HEALTHCHECK --interval=1m30s --timeout=500ms --retries=3 CMD x y")[0]
    else {
        panic!()
    };
    assert_eq!(check.test, words(&["CMD-SHELL", "x y"]));
    assert_eq!((check.interval, check.timeout, check.retries), (90_000_000_000, 500_000_000, 3));
    let Command::Healthcheck(none) = &steps("HEALTHCHECK none")[0] else { panic!() };
    assert_eq!(none.test, words(&["NONE"]));
}

#[test]
fn triggers_are_checked_and_kept_as_text() {
    assert_eq!(steps("ONBUILD RUN <<E\na\nE"), [Command::OnBuild("RUN <<E\na\nE".to_owned())]);
    assert!(wrong("FROM x\nONBUILD ONBUILD RUN a").contains("Chaining ONBUILD"));
    assert!(wrong("FROM x\nONBUILD from y").contains("FROM isn't allowed as an ONBUILD trigger"));
    assert!(wrong("FROM x\nONBUILD NOPE").contains("unknown instruction: NOPE"));
    assert_eq!(instructions("RUN a\nENV B=c").unwrap().len(), 2);
}

#[test]
fn a_line_has_an_end_and_no_depth() {
    let most = |length: usize| format!("FROM x\nRUN {}", "a".repeat(length));
    assert!(Dockerfile::parse(&most(65_531)).is_ok());
    let said = "dockerfile parse error on line 2: dockerfile line greater than max allowed size of 65535";
    assert_eq!(wrong(&most(65_532)), said);
    // Lines that go on are as long as they like.
    assert!(Dockerfile::parse(&format!("FROM x\nRUN a{}", " \\\n aaaaaaaa".repeat(20_000))).is_ok());
    let deep = format!("FROM x\n{}RUN <<E\nE\n", "ONBUILD ".repeat(8_000));
    assert!(wrong(&deep).contains("Chaining ONBUILD"));
}

#[test]
fn what_is_wrong_is_named_with_its_line() {
    for (text, message) in [
        ("", "on line 1: file with no instructions"),
        ("# only\n", "on line 1: file with no instructions"),
        ("RUN a\nFROM x", "on line 1: no build stage in current context"),
        ("ARG a", "on line 1: no build stage in current context"),
        ("FROM x\n\nNOPE y", "on line 3: unknown instruction: NOPE"),
        ("FROM a b", "on line 1: FROM requires either one or three arguments"),
        ("FROM a AS 1x", "on line 1: invalid name for build stage: \"1x\""),
        ("FROM x\nENV a", "on line 2: ENV must have two arguments"),
        ("FROM x\nENV a=1 b", "on line 2: Syntax error - can't find = in \"b\""),
        ("FROM x\nENV =1", "on line 2: ENV names can not be blank"),
        ("FROM x\nCOPY a", "on line 2: COPY requires at least two arguments"),
        ("FROM x\nCOPY --nope a b", "on line 2: unknown flag: --nope"),
        ("FROM x\nUSER", "on line 2: USER requires exactly one argument"),
        (
            "FROM x\nCMD [1]",
            "on line 2: when using JSON array syntax, arrays must be comprised of strings only",
        ),
        ("FROM x\nSHELL a", "on line 2: SHELL requires the arguments to be in JSON form"),
        ("FROM x\nRUN --mount=type=cache,target=/x a", "on line 2: the --mount option requires BuildKit"),
        ("FROM x\nHEALTHCHECK NOPE", "on line 2: Unknown type \"NOPE\" in HEALTHCHECK (try CMD)"),
        (
            "FROM x\nHEALTHCHECK --interval=1us CMD a",
            "on line 2: Interval \"interval\" cannot be less than 1ms",
        ),
        ("# escape=x\nFROM x", "on line 1: invalid escape token 'x' does not match ` or \\"),
        ("# escape=`\n# escape=`\nFROM x", "on line 2: only one escape parser directive can be used"),
        ("FROM x\nVOLUME [\" \"]", "on line 2: VOLUME specified can not be an empty string"),
    ] {
        let said = wrong(text);
        assert!(said.starts_with(&format!("dockerfile parse error {message}")), "{text:?}: {said}");
    }
}

#[test]
fn variables_are_expanded_as_in_a_shell() {
    let variables = words(&["a=one", "e=", "p=x/y/z.tar.gz", "q=1 2", "a=late"]);
    let lexer = Lexer { escape: '\\', variables: &variables };
    for (word, expanded) in [
        ("$a", "one"),
        ("${a}b$none.", "oneb."),
        ("'$a' \"$a\" \\$a", "$a one $a"),
        ("${e:-d}${e-d}${none-d}", "dd"),
        ("${a:+x}${e:+x}${e+y}", "xy"),
        ("${none:-${a}-$q}", "one-1 2"),
        ("${a:?}", "one"),
        ("${p#*/}|${p##*/}|${p%.*}|${p%%.*}", "y/z.tar.gz|z.tar.gz|x/y/z.tar|x/y/z"),
        ("${p/\\//-}|${p//\\//-}", "x-y/z.tar.gz|x-y-z.tar.gz"),
        ("$", "$"),
        ("a$$b", "ab"),
        ("\"a\\\"b\\c\"", "a\"b\\c"),
        ("C:\\\\x", "C:\\x"),
    ] {
        assert_eq!(lexer.word(word).unwrap(), expanded, "{word}");
    }
    for (word, message) in [
        ("${a", "missing '}'"),
        ("${}", "bad substitution"),
        ("'a", "matching single-quote"),
        ("\"a", "matching double-quote"),
        ("${none?gone}", "none: gone"),
        ("${e:?}", "e: is not allowed to be empty"),
        ("${a~b}", "unsupported modifier (~)"),
        ("${a:#b}", "unsupported modifier (:#)"),
    ] {
        assert!(lexer.word(word).unwrap_err().contains(message), "{word}");
    }
    assert_eq!(lexer.words("80 $q '3 4'").unwrap(), ["80", "1", "2", "3 4"]);
    assert_eq!(lexer.document("'$a' \"x\" \\$a \\n\n").unwrap(), "'one' \"x\" $a \\n\n");
}

#[test]
fn a_few_lines_do_not_fill_the_memory() {
    let variables = words(&[&format!("long={}", "x".repeat(100 << 10)), "short=ab"]);
    let lexer = Lexer { escape: '\\', variables: &variables };
    for word in ["$long$long", "\"$long${none:-$long}\"", "${long//?/$short$short}", "${short/a/$long$long}"]
    {
        assert!(lexer.word(word).unwrap_err().contains("variables are too long"), "{word}");
    }
    assert_eq!(lexer.word("$long").unwrap().len(), 100 << 10);
    // As long as it is, it is looked through once.
    assert_eq!(lexer.word("${long%%*y}").unwrap().len(), 100 << 10);
    assert_eq!(lexer.word("${long##*x}").unwrap(), "");
    assert_eq!(lexer.document(&"$long".repeat(10)).unwrap().len(), 1000 << 10);
    assert!(lexer.document(&"$long".repeat(100)).is_err());
}

#[test]
fn what_is_cut_off_is_the_shortest_or_the_longest() {
    let variables = words(&["v=ab/cb/äb"]);
    let lexer = Lexer { escape: '\\', variables: &variables };
    for (word, cut) in [
        ("${v#*b}|${v##*b}", "/cb/äb|"),
        ("${v%b*}|${v%%b*}", "ab/cb/ä|a"),
        ("${v%/*b}|${v%%/*b}", "ab/cb|ab"),
        ("${v#?}|${v##a?/}|${v%?b}", "b/cb/äb|cb/äb|ab/cb/"),
        ("${v#b}|${v%a}|${v#*}|${v%%*}", "ab/cb/äb|ab/cb/äb|ab/cb/äb|"),
    ] {
        assert_eq!(lexer.word(word).unwrap(), cut, "{word}");
    }
}
