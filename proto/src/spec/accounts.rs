//! Users and groups of a container, resolved from the text of its own /etc/passwd and /etc/group (passwd(5),
//! group(5)).

use super::types::User;
use crate::error::{Error, Result};
use crate::kind::Kind;

/// The container's account files; None where the file does not exist.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Accounts {
    /// Text of /etc/passwd.
    pub passwd: Option<String>,
    /// Text of /etc/group.
    pub group: Option<String>,
}

struct Passwd<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
}

struct Group<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

impl Accounts {
    /// User and primary group of `user`, `uid`, `user:group` or any mix of name and number.
    ///
    /// A number needs no entry; its group is that of its entry, or 0. A name must have an entry.
    pub fn user(&self, text: &str) -> Result<User> {
        let (uid, gid) = match text.split(':').collect::<Vec<_>>().as_slice() {
            [user] => match number(user) {
                Some(uid) => {
                    let gid = self.users().find(|entry| entry.uid == uid).map_or(0, |entry| entry.gid);
                    (uid, gid)
                }
                None => {
                    let entry = self.user_named(user)?;
                    (entry.uid, entry.gid)
                }
            },
            [user, group] => {
                let uid = match number(user) {
                    Some(uid) => uid,
                    None => self.user_named(user)?.uid,
                };
                let gid = match number(group) {
                    Some(gid) => gid,
                    None => self.group_named(group)?.gid,
                };
                (uid, gid)
            }
            _ => {
                return Err(Error::because(
                    Kind::InvalidArgument,
                    "user",
                    format!("{text:?}"),
                    "expected user or user:group",
                ));
            }
        };
        Ok(User { uid, gid, ..User::default() })
    }

    /// The groups of which a user is a member, the primary group first.
    ///
    /// `user` is a name or a number; for a number without an entry no group but the primary one is known.
    pub fn groups(&self, user: &str, primary: u32) -> Vec<u32> {
        let name = match number(user) {
            Some(uid) => self.users().find(|entry| entry.uid == uid).map(|entry| entry.name),
            None => Some(user),
        };
        let mut gids = vec![primary];
        if let Some(name) = name {
            let member_of = |group: &Group| {
                group.name != name && group.members.split(',').any(|member| member.trim() == name)
            };
            for group in self.group_entries().filter(member_of) {
                if !gids.contains(&group.gid) {
                    gids.push(group.gid);
                }
            }
        }
        gids
    }

    fn users(&self) -> impl Iterator<Item = Passwd<'_>> {
        lines(&self.passwd).filter_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            let uid = fields.nth(1)?.trim().parse().ok()?;
            let gid = fields.next()?.trim().parse().ok()?;
            Some(Passwd { name, uid, gid })
        })
    }

    fn group_entries(&self) -> impl Iterator<Item = Group<'_>> {
        lines(&self.group).filter_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            let gid = fields.nth(1)?.trim().parse().ok()?;
            Some(Group { name, gid, members: fields.next().unwrap_or("") })
        })
    }

    fn user_named(&self, name: &str) -> Result<Passwd<'_>> {
        let found = self.users().find(|entry| entry.name == name);
        found.ok_or_else(|| Error::because(Kind::NotFound, "user", format!("{name:?}"), "no users found"))
    }

    fn group_named(&self, name: &str) -> Result<Group<'_>> {
        let found = self.group_entries().find(|entry| entry.name == name);
        found.ok_or_else(|| Error::because(Kind::NotFound, "group", format!("{name:?}"), "no groups found"))
    }
}

/// IDs up to 2³¹-1 are numbers; anything else is a name.
fn number(text: &str) -> Option<u32> {
    text.parse::<i32>().ok().and_then(|id| u32::try_from(id).ok())
}

fn lines(text: &Option<String>) -> impl Iterator<Item = &str> {
    let lines = text.as_deref().unwrap_or("").lines().map(str::trim);
    lines.filter(|line| !line.is_empty() && !line.starts_with('#'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accounts() -> Accounts {
        Accounts {
            passwd: Some(
                "# users\nroot:x:0:0:root:/root:/bin/sh\n\nweb:x:33:34:web:/:/bin/sh\nbad\n".to_owned(),
            ),
            group: Some(
                "root:x:0:\nwheel:x:10:root\nwww:x:34:web\nlog:x:40:web,root\nweb:x:41:web\n".to_owned(),
            ),
        }
    }

    fn ids(text: &str) -> Result<(u32, u32)> {
        accounts().user(text).map(|user| (user.uid, user.gid))
    }

    #[test]
    fn names_and_numbers_mix() {
        assert_eq!(ids("web").unwrap(), (33, 34));
        assert_eq!(ids("33").unwrap(), (33, 34));
        assert_eq!(ids("1000").unwrap(), (1000, 0));
        assert_eq!(ids("web:log").unwrap(), (33, 40));
        assert_eq!(ids("5:6").unwrap(), (5, 6));
        assert_eq!(ids("5:wheel").unwrap(), (5, 10));
    }

    #[test]
    fn unknown_names_are_refused() {
        assert_eq!(ids("nobody").unwrap_err().to_string(), "user \"nobody\": no users found");
        assert_eq!(ids("web:nogroup").unwrap_err().kind(), Kind::NotFound);
        assert_eq!(ids("a:b:c").unwrap_err().kind(), Kind::InvalidArgument);
        assert_eq!(ids("4294967295").unwrap_err().kind(), Kind::NotFound);
    }

    #[test]
    fn without_files_only_numbers_are_known() {
        let none = Accounts::default();
        assert_eq!(none.user("7").unwrap(), User { uid: 7, ..User::default() });
        assert!(none.user("root").is_err());
        assert_eq!(none.groups("root", 0), [0]);
    }

    #[test]
    fn groups_are_those_that_name_the_user() {
        assert_eq!(accounts().groups("root", 0), [0, 10, 40]);
        assert_eq!(accounts().groups("33", 34), [34, 40]);
        assert_eq!(accounts().groups("1000", 0), [0]);
    }
}
