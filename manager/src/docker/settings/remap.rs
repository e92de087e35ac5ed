//! `userns-remap`: whose subordinate users and groups containers have, as dockerd finds them (subuid(5), subgid(5)).

use std::fs;
use std::path::Path;
use std::process::Command;

use nix::unistd::{Gid, Group, Uid, User};
use orlop_proto::spec::types::IdMapping;

use crate::owners::Owners;

/// The word for a user and group of the engine's own.
const DEFAULT: &str = "default";
/// Their name.
const DEFAULT_NAME: &str = "dockremap";
/// Where the first range of their own may begin, and how many IDs it has (dockerd's defaults, those of useradd(8)).
const RANGE: (u32, u32) = (100_000, 65_536);
/// Files of subordinate IDs, with the option of usermod(8) that adds to each.
const FILES: [(&str, &str, &str); 2] =
    [("/etc/subuid", "uid", "--add-subuids"), ("/etc/subgid", "gid", "--add-subgids")];

/// The users and groups of containers; nothing where root stays root. Makes the account that `default` asks for.
///
/// # Errors
///
/// A sentence, in dockerd's words.
pub fn owners(setting: &str) -> Result<Option<Owners>, String> {
    if setting.is_empty() {
        return Ok(None);
    }
    let user = user(setting)?;
    if user.name == "root" {
        tracing::warn!("User namespaces: root cannot be remapped with itself; user namespaces are OFF");
        return Ok(None);
    }
    tracing::info!("User namespaces: ID ranges will be mapped to subuid/subgid ranges of: {}", user.name);
    let find = |(file, what, _): (&str, &str, &str)| {
        let ranges = read(Path::new(file), &user)?;
        if ranges.is_empty() {
            return Err(format!("no sub{what} ranges found for user {:?}", user.name));
        }
        mappings(&ranges)
    };
    let found = FILES.map(find);
    let [uids, gids] = found.map(|found| found.map_err(|why| format!("Can't create ID mappings: {why}")));
    Ok(Some(Owners { uids: uids?, gids: gids? }))
}

/// An account that a setting means.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Account {
    name: String,
    uid: u32,
}

fn user(setting: &str) -> Result<Account, String> {
    let parts: Vec<&str> = setting.split(':').collect();
    let (name, group_name) = match parts[..] {
        [name] => (name, None),
        [name, group] => (name, Some(group)),
        _ => return Err(format!("Invalid user/group specification in --userns-remap: {setting:?}")),
    };
    let missing = |what: &str, base: &str| format!("getent unable to find entry {what:?} in {base} database");
    let account = |user: User| Account { name: user.name, uid: user.uid.as_raw() };
    let found = match name.parse::<u32>() {
        Ok(uid) => {
            let found = User::from_uid(Uid::from_raw(uid)).ok().flatten().ok_or_else(|| {
                format!("Uid {uid} has no entry in /etc/passwd: {}", missing(name, "passwd"))
            })?;
            if group_name.is_none() && Group::from_gid(Gid::from_raw(uid)).ok().flatten().is_none() {
                return Err(format!("Gid {uid} has no entry in /etc/group: {}", missing(name, "group")));
            }
            account(found)
        }
        Err(_) => {
            let name = if name == DEFAULT { DEFAULT_NAME } else { name };
            match User::from_name(name).ok().flatten() {
                Some(found) => {
                    if group_name.is_none() && Group::from_name(name).ok().flatten().is_none() {
                        let why = missing(name, "group");
                        return Err(format!("Error during gid lookup for {name:?}: {why}"));
                    }
                    account(found)
                }
                None if parts[0] == DEFAULT => {
                    return make_account(DEFAULT_NAME)
                        .map_err(|why| format!("Error during {DEFAULT_NAME:?} user creation: {why}"));
                }
                None => {
                    let why = missing(name, "passwd");
                    return Err(format!("Error during uid lookup for {name:?}: {why}"));
                }
            }
        }
    };
    match group_name {
        None => {}
        Some(group) => match group.parse::<u32>() {
            Ok(gid) if Group::from_gid(Gid::from_raw(gid)).ok().flatten().is_none() => {
                let why = missing(group, "group");
                return Err(format!("Gid {gid} has no entry in /etc/passwd: {why}"));
            }
            Err(_) if Group::from_name(group).ok().flatten().is_none() => {
                let why = missing(group, "group");
                return Err(format!("Error during groupname lookup for {group:?}: {why}"));
            }
            _ => {}
        },
    }
    Ok(found)
}

/// Makes a system account without a home, and gives it the next free ranges where it has none.
fn make_account(name: &str) -> Result<Account, String> {
    let adduser = [
        "--system",
        "--shell",
        "/bin/false",
        "--no-create-home",
        "--disabled-login",
        "--disabled-password",
        "--group",
        name,
    ];
    match run("adduser", &adduser) {
        // Distributions without Debian's program have the one below it.
        Err(Failed::Missing) => run("useradd", &["-r", "-s", "/bin/false", name]),
        done => done,
    }
    .map_err(|failed| failed.to_string())?;
    let found = User::from_name(name).ok().flatten();
    let found = found.ok_or_else(|| format!("the user {name:?} is not there after it was made"))?;
    let account = Account { name: found.name, uid: found.uid.as_raw() };
    for (file, what, option) in FILES {
        let path = Path::new(file);
        if read(path, &account)?.is_empty() {
            let (first, size) = free(&all(path)?);
            let range = format!("{first}-{}", first + (size - 1));
            run("usermod", &[option, &range, name])
                .map_err(|failed| format!("couldn't create subordinate {what} ranges: {failed}"))?;
        }
    }
    Ok(account)
}

/// Why a program did not do its work.
enum Failed {
    Missing,
    Said(String),
}

impl std::fmt::Display for Failed {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Failed::Missing => formatter.write_str("no program to do so was found in $PATH"),
            Failed::Said(text) => formatter.write_str(text),
        }
    }
}

fn run(program: &str, arguments: &[&str]) -> Result<(), Failed> {
    match Command::new(program).args(arguments).output() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(Failed::Missing),
        Err(error) => Err(Failed::Said(format!("{program}: {error}"))),
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => {
            let said = [output.stdout, output.stderr].concat();
            let said = String::from_utf8_lossy(&said).trim().replace('\n', "; ");
            Err(Failed::Said(format!("{program}: {}: {said}", output.status)))
        }
    }
}

/// A line of subuid(5): whose, the first, how many.
type Line = (String, u32, u32);

/// The ranges of an account, by its name and then by its number.
fn read(path: &Path, account: &Account) -> Result<Vec<(u32, u32)>, String> {
    let lines = all(path)?;
    let of = |owner: String| {
        let own = lines.iter().filter(move |(name, ..)| *name == owner);
        own.map(|&(_, first, size)| (first, size)).collect::<Vec<_>>()
    };
    Ok([of(account.name.clone()), of(account.uid.to_string())].concat())
}

fn all(path: &Path) -> Result<Vec<Line>, String> {
    let shown = path.display();
    let text = fs::read_to_string(path).map_err(|error| format!("open {shown}: {}", plain(&error)))?;
    lines(&text)
        .ok_or_else(|| format!("Cannot parse subuid/gid information: Format not correct for {shown} file"))
}

fn plain(error: &std::io::Error) -> String {
    let text = error.to_string().to_lowercase();
    text.split(" (os").next().unwrap_or_default().to_owned()
}

fn lines(text: &str) -> Option<Vec<Line>> {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let one = |line: &str| {
        let words: Vec<&str> = line.split(':').collect();
        let [name, first, size] = words[..] else { return None };
        let (first, size): (u32, u32) = (first.parse().ok()?, size.parse().ok()?);
        (size > 0).then(|| (name.to_owned(), first, size))
    };
    lines.map(one).collect()
}

/// The ranges one after the other, from root on.
fn mappings(ranges: &[(u32, u32)]) -> Result<Vec<IdMapping>, String> {
    let mut container_id = 0u32;
    let one = |&(host_id, size): &(u32, u32)| {
        let mapping = IdMapping { container_id, host_id, size };
        host_id.checked_add(size)?;
        container_id = container_id.checked_add(size)?;
        Some(mapping)
    };
    let all: Option<Vec<IdMapping>> = ranges.iter().map(one).collect();
    all.ok_or_else(|| "the ranges have more IDs than there are".to_owned())
}

/// A range that nobody has.
fn free(taken: &[Line]) -> (u32, u32) {
    let mut sorted: Vec<(u32, u32)> = taken.iter().map(|&(_, first, size)| (first, size)).collect();
    sorted.sort_unstable();
    let (mut first, size) = RANGE;
    for (other, length) in sorted {
        let end = other.saturating_add(length);
        if other < first.saturating_add(size) && end > first {
            first = end;
        }
    }
    (first, size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_found_by_name_and_by_number() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("subuid");
        let account = Account { name: "web".to_owned(), uid: 33 };
        fs::write(&path, "# none\nother:1:1\n33:900000:10\n web:100000:65536 \n\nweb:300000:1\n").unwrap();
        let ranges = read(&path, &account).unwrap();
        assert_eq!(ranges, [(100_000, 65_536), (300_000, 1), (900_000, 10)]);
        let mapped = mappings(&ranges).unwrap();
        let starts: Vec<(u32, u32)> =
            mapped.iter().map(|range| (range.container_id, range.host_id)).collect();
        assert_eq!(starts, [(0, 100_000), (65_536, 300_000), (65_537, 900_000)]);
        assert!(mappings(&[(u32::MAX, 2)]).is_err());
        for wrong in ["web:1", "web:a:1", "web:1:0", "web:1:-1"] {
            fs::write(&path, wrong).unwrap();
            assert!(read(&path, &account).unwrap_err().contains("Format not correct"), "{wrong}");
        }
        let missing = read(&directory.path().join("nothing"), &account).unwrap_err();
        assert!(missing.ends_with("nothing: no such file or directory"), "{missing}");
    }

    #[test]
    fn a_new_range_is_nobody_elses() {
        let line = |first, size| ("x".to_owned(), first, size);
        assert_eq!(free(&[]), RANGE);
        assert_eq!(free(&[line(165_536, 65_536), line(100_000, 65_536)]).0, 231_072);
        assert_eq!(free(&[line(50, 10), line(130_000, 5)]).0, 130_005);
        assert_eq!(free(&[line(300_000, 5)]).0, 100_000);
    }

    #[test]
    fn settings_name_accounts() {
        assert_eq!(owners("").unwrap(), None);
        assert_eq!(owners("root").unwrap(), None);
        assert_eq!(owners("0:0").unwrap(), None);
        for (setting, words) in [
            ("a:b:c", "Invalid user/group specification in --userns-remap: \"a:b:c\""),
            (
                "no-such",
                "Error during uid lookup for \"no-such\": getent unable to find entry \"no-such\" in passwd database",
            ),
            (
                "2000000001",
                "Uid 2000000001 has no entry in /etc/passwd: getent unable to find entry \"2000000001\" in passwd database",
            ),
            (
                "root:no-such",
                "Error during groupname lookup for \"no-such\": getent unable to find entry \"no-such\" in group database",
            ),
            (
                "0:2000000001",
                "Gid 2000000001 has no entry in /etc/passwd: getent unable to find entry \"2000000001\" in group database",
            ),
        ] {
            assert_eq!(owners(setting).unwrap_err(), words);
        }
    }
}
