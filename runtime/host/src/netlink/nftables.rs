//! Tables of nftables, by nfnetlink: batches that the kernel carries out as a whole or not at all.
//!
//! Follows `linux/netfilter/nf_tables.h`. Registers are the 32-bit ones; what is compared is in network byte order.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, setsockopt, socket, sockopt,
};

use super::message::{ACK, MESSAGE_HEADER, Message, REQUEST, next_message, number_at};

const SUBSYSTEM: u16 = 10; // NFNL_SUBSYS_NFTABLES
const BATCH_BEGIN: u16 = 0x10; // NFNL_MSG_BATCH_BEGIN
const BATCH_END: u16 = 0x11; // NFNL_MSG_BATCH_END
const FLAG_CREATE: u16 = libc::NLM_F_CREATE as u16;
const FLAG_APPEND: u16 = libc::NLM_F_APPEND as u16;
/// Elements in one message: an attribute's length has 16 bits.
const ELEMENTS: usize = 256;
/// Bytes of a batch that the socket takes at once.
const SEND_BUFFER: usize = 16 << 20;

// Attributes of a verdict (NFTA_VERDICT_…) and of data (NFTA_DATA_…).
const DATA_VALUE: u16 = 1;
const DATA_VERDICT: u16 = 2;
const VERDICT_CODE: u16 = 1;
const VERDICT_CHAIN: u16 = 2;
const CODE_DROP: u32 = 0;
const CODE_ACCEPT: u32 = 1;
const CODE_JUMP: u32 = -3i32 as u32;

/// The first of the 32-bit registers (`NFT_REG32_00`).
pub const R0: u32 = 8;
/// Where a verdict goes (`NFT_REG_VERDICT`).
const VERDICT: u32 = 0;

/// Protocol family of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// Version 4.
    V4,
    /// Version 6.
    V6,
}

impl Family {
    fn number(self) -> u8 {
        match self {
            Family::V4 => 2,  // NFPROTO_IPV4
            Family::V6 => 10, // NFPROTO_IPV6
        }
    }

    /// Bytes of an address.
    pub fn address_length(self) -> u32 {
        if self == Family::V4 { 4 } else { 16 }
    }
}

/// What happens to a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It goes on, as far as this hook's table is concerned.
    Accept,
    /// It is gone.
    Drop,
    /// Another chain is asked, and then this one goes on.
    Jump(String),
}

/// Where a base chain hooks in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hook {
    /// `NF_INET_PRE_ROUTING` and so on.
    pub number: u32,
    /// Lower ones come first.
    pub priority: i32,
    /// `filter` or `nat`.
    pub kind: &'static str,
}

/// One step of a rule; a comparison that does not hold ends it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Loads a fact on the packet (`NFT_META_…`) into a register.
    Meta(u32, u32),
    /// Loads the state of the connection (`NFT_CT_…`) into a register.
    Connection(u32, u32),
    /// Loads bytes of the network header into a register: offset, length, register.
    Network(u32, u32, u32),
    /// Loads bytes of the transport header into a register: offset, length, register.
    Transport(u32, u32, u32),
    /// Loads the type of the destination address, as the routing tables have it, into a register.
    DestinationType(u32),
    /// Keeps the bits of a mask in a register.
    Mask(u32, Vec<u8>),
    /// Holds if the register has these bytes.
    Equal(u32, Vec<u8>),
    /// Holds if the register does not have these bytes.
    Unequal(u32, Vec<u8>),
    /// Holds if the set has what the register says.
    In(&'static str, u32),
    /// Loads what the map has for the register into a register; holds if it has something.
    Map(&'static str, u32, u32),
    /// Does what the map of verdicts says.
    VerdictMap(&'static str, u32),
    /// Loads bytes into a register.
    Load(u32, Vec<u8>),
    /// Changes the destination to the address and port in two registers.
    Destination(u32, u32),
    /// Changes the source to the address of the device that the packet leaves by.
    Masquerade,
    /// Ends the rule.
    Do(Verdict),
}

/// What a map's elements lead to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// Nothing: it is a set.
    None,
    /// Bytes.
    Value(Vec<u8>),
    /// A verdict.
    Verdict(Verdict),
}

/// An element of a set or map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Element {
    /// What is looked up.
    pub key: Vec<u8>,
    /// What it leads to.
    pub target: Target,
}

/// A type of key or data: the number by which `nft` prints it, and its length in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Type(pub u32, pub u32);

/// Names of devices.
pub const IFNAME: Type = Type(41, 16);

/// What a set's or map's elements have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataType {
    /// It is a set.
    None,
    /// A map to values.
    Value(Type),
    /// A map to verdicts.
    Verdict,
}

/// Changes to one family's table that take effect together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    family: Family,
    table: &'static str,
    messages: Vec<Message>,
    sets: u32,
}

impl Batch {
    /// No change yet.
    pub fn new(family: Family, table: &'static str) -> Batch {
        Batch { family, table, messages: Vec::new(), sets: 0 }
    }

    fn message(&mut self, kind: i32, flags: u16) -> &mut Message {
        let header = [self.family.number(), 0, 0, 0];
        self.messages.push(Message::new(SUBSYSTEM << 8 | kind as u16, REQUEST | flags, &header));
        let last = self.messages.len() - 1;
        &mut self.messages[last]
    }

    /// Makes the table if it is not there.
    pub fn add_table(&mut self) -> &mut Batch {
        let table = self.table;
        self.message(libc::NFT_MSG_NEWTABLE, FLAG_CREATE).text(1, table);
        self
    }

    /// Removes the table, which has to be there.
    pub fn remove_table(&mut self) -> &mut Batch {
        let table = self.table;
        self.message(libc::NFT_MSG_DELTABLE, 0).text(1, table);
        self
    }

    /// Makes a chain, which accepts what none of its rules decides.
    pub fn add_chain(&mut self, name: &str, hook: Option<Hook>) -> &mut Batch {
        let table = self.table;
        let message = self.message(libc::NFT_MSG_NEWCHAIN, FLAG_CREATE);
        message.text(1, table).text(3, name); // NFTA_CHAIN_TABLE, NFTA_CHAIN_NAME
        if let Some(hook) = hook {
            message.nested(4, |inner| {
                // NFTA_CHAIN_HOOK: NFTA_HOOK_HOOKNUM, NFTA_HOOK_PRIORITY
                inner.big_endian(1, hook.number).big_endian(2, hook.priority as u32);
            });
            message.big_endian(5, CODE_ACCEPT).text(7, hook.kind); // NFTA_CHAIN_POLICY, NFTA_CHAIN_TYPE
        }
        self
    }

    /// Removes a chain that nothing leads to any more, with its rules.
    pub fn remove_chain(&mut self, name: &str) -> &mut Batch {
        let table = self.table;
        self.message(libc::NFT_MSG_DELRULE, 0).text(1, table).text(2, name);
        self.message(libc::NFT_MSG_DELCHAIN, 0).text(1, table).text(3, name);
        self
    }

    /// Adds a rule at the end of a chain.
    pub fn add_rule(&mut self, chain: &str, steps: &[Step]) -> &mut Batch {
        let (table, family) = (self.table, self.family);
        let message = self.message(libc::NFT_MSG_NEWRULE, FLAG_CREATE | FLAG_APPEND);
        message.text(1, table).text(2, chain); // NFTA_RULE_TABLE, NFTA_RULE_CHAIN
        message.nested(4, |rule| {
            // NFTA_RULE_EXPRESSIONS
            for step in steps {
                rule.nested(1, |one| expression(one, step, family)); // NFTA_LIST_ELEM
            }
        });
        self
    }

    /// Makes a set or map.
    pub fn add_set(&mut self, name: &str, key: Type, data: DataType) -> &mut Batch {
        self.sets += 1;
        let (table, id) = (self.table, self.sets);
        let message = self.message(libc::NFT_MSG_NEWSET, FLAG_CREATE);
        let flags = if data == DataType::None { 0 } else { libc::NFT_SET_MAP as u32 };
        message.text(1, table).text(2, name).big_endian(3, flags); // NFTA_SET_TABLE, _NAME, _FLAGS
        message.big_endian(4, key.0).big_endian(5, key.1); // NFTA_SET_KEY_TYPE, NFTA_SET_KEY_LEN
        match data {
            DataType::None => {}
            DataType::Value(data) => {
                message.big_endian(6, data.0).big_endian(7, data.1); // NFTA_SET_DATA_TYPE, _LEN
            }
            DataType::Verdict => {
                message.big_endian(6, 0xffff_ff00); // NFT_DATA_VERDICT
                message.big_endian(7, 16);
            }
        }
        message.big_endian(10, id); // NFTA_SET_ID
        if key == IFNAME {
            // For nft(8), which shows names backwards unless it is told of the byte order: NFTA_SET_USERDATA with
            // NFTNL_UDATA_SET_KEYBYTEORDER, four bytes, host's own.
            let order = 1u32.to_ne_bytes();
            message.attribute(13, &[&[0, 4], &order[..]].concat());
        }
        self
    }

    /// Adds elements to a set or map.
    pub fn add_elements(&mut self, set: &str, elements: &[Element]) -> &mut Batch {
        self.elements(libc::NFT_MSG_NEWSETELEM, FLAG_CREATE, set, elements)
    }

    /// Takes elements from a set or map, which has to have them.
    pub fn remove_elements(&mut self, set: &str, elements: &[Element]) -> &mut Batch {
        self.elements(libc::NFT_MSG_DELSETELEM, 0, set, elements)
    }

    fn elements(&mut self, kind: i32, flags: u16, set: &str, elements: &[Element]) -> &mut Batch {
        let table = self.table;
        for some in elements.chunks(ELEMENTS) {
            let message = self.message(kind, flags);
            message.text(1, table).text(2, set); // NFTA_SET_ELEM_LIST_TABLE, _SET
            message.nested(3, |list| {
                for element in some {
                    list.nested(1, |one| {
                        // NFTA_SET_ELEM_KEY, NFTA_SET_ELEM_DATA
                        one.nested(1, |key| {
                            key.attribute(DATA_VALUE, &element.key);
                        });
                        match &element.target {
                            Target::None => {}
                            Target::Value(value) => {
                                one.nested(2, |data| {
                                    data.attribute(DATA_VALUE, value);
                                });
                            }
                            Target::Verdict(verdict) => {
                                one.nested(2, |data| verdict_data(data, verdict));
                            }
                        }
                    });
                }
            });
        }
        self
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// Carries the changes out in this thread's network namespace: all of them, or none.
    pub fn commit(&self) -> io::Result<()> {
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkNetFilter,
        )?;
        self.commit_by(&socket)
    }

    fn commit_by(&self, socket: &OwnedFd) -> io::Result<()> {
        let bytes = self.bytes();
        if bytes.len() > 64 << 10 {
            setsockopt(socket, sockopt::SndBufForce, &SEND_BUFFER)?;
        }
        send(socket.as_raw_fd(), &bytes, MsgFlags::empty())?;
        // The kernel has done it all when send returns; what it says is there to be read.
        let mut buffer = vec![0; 16 << 10];
        let mut answered = false;
        loop {
            let length = match recv(socket.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
                Ok(length) => length,
                Err(nix::errno::Errno::EAGAIN) if answered => return Ok(()),
                Err(error) => return Err(error.into()),
            };
            let mut rest = &buffer[..length];
            while let Some((kind, message, after)) = next_message(rest) {
                if i32::from(kind) == libc::NLMSG_ERROR {
                    answered = true;
                    let error = number_at(message, MESSAGE_HEADER);
                    if error != 0 {
                        return Err(io::Error::from_raw_os_error(-error));
                    }
                }
                rest = after;
            }
        }
    }

    fn bytes(&self) -> Vec<u8> {
        let bracket = |kind: u16| {
            let mut header = [0; 4];
            header[2..].copy_from_slice(&SUBSYSTEM.to_be_bytes());
            Message::new(kind, REQUEST, &header)
        };
        let mut bytes = bracket(BATCH_BEGIN).finish();
        for (number, message) in self.messages.iter().enumerate() {
            let mut message = message.clone();
            if number + 1 == self.messages.len() {
                message.add_flags(ACK);
            }
            bytes.extend(message.finish());
        }
        bytes.extend(bracket(BATCH_END).finish());
        bytes
    }
}

fn verdict_data(data: &mut Message, verdict: &Verdict) {
    data.nested(DATA_VERDICT, |inner| match verdict {
        Verdict::Accept => {
            inner.big_endian(VERDICT_CODE, CODE_ACCEPT);
        }
        Verdict::Drop => {
            inner.big_endian(VERDICT_CODE, CODE_DROP);
        }
        Verdict::Jump(chain) => {
            inner.big_endian(VERDICT_CODE, CODE_JUMP).text(VERDICT_CHAIN, chain);
        }
    });
}

/// An expression: its name (`NFTA_EXPR_NAME`) and its data (`NFTA_EXPR_DATA`), whose attributes have numbers of their own.
fn expression(message: &mut Message, step: &Step, family: Family) {
    let mut named = |name: &str, fill: &dyn Fn(&mut Message)| {
        message.text(1, name).nested(2, |data| fill(data));
    };
    let load = |data: &mut Message, base: u32, (offset, length, register): (u32, u32, u32)| {
        data.big_endian(1, register).big_endian(2, base).big_endian(3, offset).big_endian(4, length);
    };
    let compare = |data: &mut Message, operation: u32, register: u32, value: &[u8]| {
        data.big_endian(1, register).big_endian(2, operation).nested(3, |inner| {
            inner.attribute(DATA_VALUE, value);
        });
    };
    match step {
        Step::Meta(key, register) => named("meta", &|data| {
            data.big_endian(1, *register).big_endian(2, *key);
        }),
        Step::Connection(key, register) => named("ct", &|data| {
            data.big_endian(1, *register).big_endian(2, *key);
        }),
        Step::Network(offset, length, register) => {
            named("payload", &|data| load(data, 1, (*offset, *length, *register)));
        }
        Step::Transport(offset, length, register) => {
            named("payload", &|data| load(data, 2, (*offset, *length, *register)));
        }
        Step::DestinationType(register) => named("fib", &|data| {
            // NFT_FIB_RESULT_ADDRTYPE, NFTA_FIB_F_DADDR
            data.big_endian(1, *register).big_endian(2, 3).big_endian(3, 2);
        }),
        Step::Mask(register, mask) => named("bitwise", &|data| {
            data.big_endian(1, *register).big_endian(2, *register).big_endian(3, mask.len() as u32);
            data.nested(4, |inner| {
                inner.attribute(DATA_VALUE, mask);
            });
            data.nested(5, |inner| {
                inner.attribute(DATA_VALUE, &vec![0; mask.len()]);
            });
        }),
        Step::Equal(register, value) => named("cmp", &|data| compare(data, 0, *register, value)),
        Step::Unequal(register, value) => named("cmp", &|data| compare(data, 1, *register, value)),
        Step::In(set, register) => named("lookup", &|data| {
            data.text(1, set).big_endian(2, *register);
        }),
        Step::Map(set, from, to) => named("lookup", &|data| {
            data.text(1, set).big_endian(2, *from).big_endian(3, *to);
        }),
        Step::VerdictMap(set, from) => named("lookup", &|data| {
            data.text(1, set).big_endian(2, *from).big_endian(3, VERDICT);
        }),
        Step::Load(register, value) => named("immediate", &|data| {
            data.big_endian(1, *register).nested(2, |inner| {
                inner.attribute(DATA_VALUE, value);
            });
        }),
        Step::Destination(address, port) => named("nat", &|data| {
            // NFT_NAT_DNAT; address and port from registers.
            data.big_endian(1, 1).big_endian(2, family.number().into());
            data.big_endian(3, *address).big_endian(5, *port);
        }),
        Step::Masquerade => named("masq", &|_| {}),
        Step::Do(verdict) => named("immediate", &|data| {
            data.big_endian(1, VERDICT).nested(2, |inner| verdict_data(inner, verdict));
        }),
    }
}
