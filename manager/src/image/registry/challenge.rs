//! `WWW-Authenticate` headers (RFC 9110, and the distribution project's token authentication).

/// What a registry asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Challenge {
    /// A user name and password with every request.
    Basic,
    /// A token, which the realm gives.
    Bearer {
        /// URL that gives tokens.
        realm: String,
        /// Whom the token is for.
        service: String,
        /// What the token must allow.
        scope: String,
    },
}

/// Reads a header; of several challenges, the first that is known, a token before a password.
pub fn parse<'a>(headers: impl IntoIterator<Item = &'a str>) -> Option<Challenge> {
    let mut basic = None;
    for header in headers {
        let (scheme, rest) = header.trim().split_once(' ').unwrap_or((header.trim(), ""));
        if scheme.eq_ignore_ascii_case("bearer") {
            let parameters = parameters(rest);
            let get = |name: &str| {
                let found = parameters.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
                found.map(|(_, value)| value.clone()).unwrap_or_default()
            };
            if !get("realm").is_empty() {
                return Some(Challenge::Bearer {
                    realm: get("realm"),
                    service: get("service"),
                    scope: get("scope"),
                });
            }
        } else if scheme.eq_ignore_ascii_case("basic") {
            basic = Some(Challenge::Basic);
        }
    }
    basic
}

/// `key=value` and `key="value"`, separated by commas.
fn parameters(text: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut rest = text.trim_start();
    while let Some((key, after)) = rest.split_once('=') {
        let key = key.trim_matches([' ', ',']).to_owned();
        let mut value = String::new();
        let after = after.trim_start();
        rest = match after.strip_prefix('"') {
            Some(quoted) => {
                let mut characters = quoted.char_indices();
                let mut end = quoted.len();
                while let Some((at, character)) = characters.next() {
                    match character {
                        '"' => {
                            end = at + 1;
                            break;
                        }
                        '\\' => value.extend(characters.next().map(|(_, escaped)| escaped)),
                        other => value.push(other),
                    }
                }
                &quoted[end..]
            }
            None => {
                let (plain, rest) = after.split_once(',').unwrap_or((after, ""));
                value.push_str(plain.trim());
                rest
            }
        };
        found.push((key, value));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_challenges() {
        let bearer = |realm: &str, service: &str, scope: &str| {
            Some(Challenge::Bearer { realm: realm.into(), service: service.into(), scope: scope.into() })
        };
        for (header, expected) in [
            (
                r#"Bearer realm="https://auth.example/token",service="registry",scope="repository:a/b:pull,push""#,
                bearer("https://auth.example/token", "registry", "repository:a/b:pull,push"),
            ),
            (r#"bearer realm="r\"x" , service=plain"#, bearer("r\"x", "plain", "")),
            (r#"Basic realm="Registry Realm""#, Some(Challenge::Basic)),
            ("Basic", Some(Challenge::Basic)),
            ("Bearer", None),
            ("Bearer service=x", None),
            ("Negotiate", None),
            ("", None),
            (r#"Bearer realm="open"#, bearer("open", "", "")),
        ] {
            assert_eq!(parse([header]), expected, "{header}");
        }
        assert_eq!(parse(["Basic realm=x", "Bearer realm=y"]), bearer("y", "", ""));
    }
}
