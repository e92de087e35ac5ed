//! EROFS on the disk: pure encoding, little-endian (Linux, fs/erofs/erofs_fs.h and Documentation/filesystems/erofs.rst).

use rustix::fs::FileType;

/// The size of a block, in bytes: the one that every kernel with EROFS mounts.
pub const BLOCK: u64 = 4096;
/// The same as a length in memory.
pub const BLOCK_LEN: usize = 4096;
/// The unit in which inodes are addressed, in bytes.
pub const SLOT: u64 = 32;
/// The longest name, in bytes.
pub const MAX_NAME: usize = 255;
/// Size of an extended inode, in bytes: it holds times and 32-bit owners, which the compact one does not.
pub const INODE: usize = 64;
/// Where the superblock starts, in bytes.
pub const SUPERBLOCK: usize = 1024;
/// Its length, in bytes.
pub const SUPERBLOCK_LEN: usize = 128;
/// Where the root's inode lies: right after the superblock, since its number must be a small one.
pub const ROOT: u64 = (SUPERBLOCK + SUPERBLOCK_LEN) as u64;
/// Room for the root's inode and attributes, in bytes.
pub const ROOT_LEN: usize = BLOCK_LEN - ROOT as usize;

/// What a superblock starts with.
pub const MAGIC: u32 = 0xE0F5_E1E2;
/// The superblock has a checksum.
pub const COMPAT_CHECKSUM: u32 = 1;
/// Times in inodes are those of the last change of content.
pub const COMPAT_MTIME: u32 = 2;
/// Size of the head of inline attributes, in bytes.
pub const XATTR_HEADER: usize = 12;
/// Size of one attribute's head, in bytes.
pub const XATTR_ENTRY: usize = 4;
/// Size of a directory's entry without its name, in bytes.
pub const DIRENT: usize = 12;

/// Where a file's data lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// In whole blocks.
    Plain,
    /// In whole blocks, and the rest right after the inode.
    Inline,
}

/// What an inode says, but for its attributes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inode {
    /// Type and permissions, as in stat(2).
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Seconds since 1970.
    pub seconds: u64,
    /// Nanoseconds after them.
    pub nanoseconds: u32,
    /// Length in bytes.
    pub size: u64,
    /// Number of names.
    pub links: u32,
    /// The first block of the data, or a device's number.
    pub place: u32,
    /// Where the data lies.
    pub layout: Layout,
    /// A number for 32-bit systems.
    pub number: u32,
}

impl Inode {
    /// The extended inode that attributes of so many bytes follow.
    pub fn encode(&self, xattrs: usize) -> [u8; INODE] {
        const EXTENDED: u16 = 1;
        let layout = match self.layout {
            Layout::Plain => 0,
            Layout::Inline => 2,
        };
        // The count is one for the head and one for every four bytes after it.
        let count = if xattrs == 0 { 0 } else { (xattrs - XATTR_HEADER) / 4 + 1 };
        let mut bytes = [0; INODE];
        let mut at = 0;
        let mut put = |value: &[u8]| {
            bytes[at..at + value.len()].copy_from_slice(value);
            at += value.len();
        };
        put(&(EXTENDED | layout << 1).to_le_bytes());
        put(&u16::try_from(count).unwrap_or(u16::MAX).to_le_bytes());
        put(&u16::try_from(self.mode).unwrap_or(0).to_le_bytes());
        put(&[0; 2]);
        put(&self.size.to_le_bytes());
        put(&self.place.to_le_bytes());
        put(&self.number.to_le_bytes());
        put(&self.uid.to_le_bytes());
        put(&self.gid.to_le_bytes());
        put(&self.seconds.to_le_bytes());
        put(&self.nanoseconds.to_le_bytes());
        put(&self.links.to_le_bytes());
        bytes
    }
}

/// The number of a device, as the kernel's `new_encode_dev` has it.
pub fn device(major: u32, minor: u32) -> u32 {
    (minor & 0xff) | (major & 0xfff) << 8 | (minor & 0xfff00) << 12
}

/// Attributes as they follow an inode, and nothing where there are none.
///
/// Names of kinds that EROFS cannot hold are left out, as on any file system that lacks them; `None` for attributes
/// that none could hold.
pub fn xattrs<'a>(attributes: impl Iterator<Item = (&'a [u8], &'a [u8])>) -> Option<Vec<u8>> {
    const KINDS: [(u8, &[u8]); 5] = [
        (2, b"system.posix_acl_access"),
        (3, b"system.posix_acl_default"),
        (1, b"user."),
        (4, b"trusted."),
        (6, b"security."),
    ];
    let mut bytes = vec![0; XATTR_HEADER];
    for (name, value) in attributes {
        let Some((index, rest)) =
            KINDS.iter().find_map(|(index, prefix)| Some((*index, name.strip_prefix(*prefix)?)))
        else {
            continue;
        };
        if rest.is_empty() != (index == 2 || index == 3) {
            return None;
        }
        bytes.push(u8::try_from(rest.len()).ok()?);
        bytes.push(index);
        bytes.extend_from_slice(&u16::try_from(value.len()).ok()?.to_le_bytes());
        bytes.extend_from_slice(rest);
        bytes.extend_from_slice(value);
        bytes.resize(bytes.len().next_multiple_of(XATTR_ENTRY), 0);
    }
    match bytes.len() {
        XATTR_HEADER => Some(Vec::new()),
        length if length / 4 > usize::from(u16::MAX) => None,
        _ => Some(bytes),
    }
}

/// The kind of a directory's entry.
pub fn entry_kind(kind: FileType) -> u8 {
    match kind {
        FileType::RegularFile => 1,
        FileType::Directory => 2,
        FileType::CharacterDevice => 3,
        FileType::BlockDevice => 4,
        FileType::Fifo => 5,
        FileType::Socket => 6,
        FileType::Symlink => 7,
        FileType::Unknown => 0,
    }
}

/// The type of a file from the kind of its entry.
pub fn file_type(kind: u8) -> FileType {
    const ALL: [FileType; 7] = [
        FileType::RegularFile,
        FileType::Directory,
        FileType::CharacterDevice,
        FileType::BlockDevice,
        FileType::Fifo,
        FileType::Socket,
        FileType::Symlink,
    ];
    ALL.into_iter().find(|one| entry_kind(*one) == kind).unwrap_or(FileType::Unknown)
}

/// A name in a directory.
#[derive(Clone, Copy, Debug)]
pub struct Dirent<'a> {
    /// The name.
    pub name: &'a [u8],
    /// The inode, in slots from the image's start.
    pub nid: u64,
    /// See [`entry_kind`].
    pub kind: u8,
}

/// How long a directory with these names, in order, is: whole blocks but for the last one.
pub fn directory_size<'a>(names: impl Iterator<Item = &'a [u8]>) -> u64 {
    let (mut blocks, mut used) = (0, 0);
    for name in names {
        if used + DIRENT + name.len() > BLOCK_LEN {
            (blocks, used) = (blocks + 1, 0);
        }
        used += DIRENT + name.len();
    }
    blocks * BLOCK + used as u64
}

/// A directory's content; the names are in order.
pub fn directory(entries: &[Dirent]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = entries;
    while !rest.is_empty() {
        bytes.resize(bytes.len().next_multiple_of(BLOCK_LEN), 0);
        let mut used = 0;
        let fits = |entry: &&Dirent| {
            used += DIRENT + entry.name.len();
            used <= BLOCK_LEN
        };
        let count = rest.iter().take_while(fits).count();
        let (block, after) = rest.split_at(count);
        let mut name_at = block.len() * DIRENT;
        for entry in block {
            bytes.extend_from_slice(&entry.nid.to_le_bytes());
            bytes.extend_from_slice(&u16::try_from(name_at).unwrap_or(0).to_le_bytes());
            bytes.extend_from_slice(&[entry.kind, 0]);
            name_at += entry.name.len();
        }
        block.iter().for_each(|entry| bytes.extend_from_slice(entry.name));
        rest = after;
    }
    bytes
}

/// What the superblock says.
pub struct Superblock {
    /// Number of blocks of the image.
    pub blocks: u32,
    /// Number of inodes.
    pub inodes: u64,
    /// What identifies the image.
    pub uuid: [u8; 16],
}

impl Superblock {
    /// The first block, which the rest of the root (from [`ROOT`] on) is part of.
    pub fn encode(&self, root: &[u8]) -> [u8; BLOCK_LEN] {
        const CHECKSUM_AT: usize = SUPERBLOCK + 4;
        let mut block = [0; BLOCK_LEN];
        let mut put = |at: usize, value: &[u8]| {
            block[SUPERBLOCK + at..SUPERBLOCK + at + value.len()].copy_from_slice(value);
        };
        put(0, &MAGIC.to_le_bytes());
        put(8, &(COMPAT_CHECKSUM | COMPAT_MTIME).to_le_bytes());
        put(12, &[u8::try_from(BLOCK.ilog2()).unwrap_or(0)]);
        put(14, &u16::try_from(ROOT / SLOT).unwrap_or(0).to_le_bytes());
        put(16, &self.inodes.to_le_bytes());
        put(36, &self.blocks.to_le_bytes());
        put(48, &self.uuid);
        block[ROOT as usize..ROOT as usize + root.len()].copy_from_slice(root);
        let checksum = crc32c(&block[SUPERBLOCK..]);
        block[CHECKSUM_AT..CHECKSUM_AT + 4].copy_from_slice(&checksum.to_le_bytes());
        block
    }
}

/// CRC-32C as the kernel's `crc32c(~0, …)` gives it, not inverted at the end.
pub fn crc32c(bytes: &[u8]) -> u32 {
    const POLYNOMIAL: u32 = 0x82F6_3B78;
    bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (POLYNOMIAL & (crc & 1).wrapping_neg()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_as_rfc_3720_does() {
        // Appendix B.4: 32 bytes of zeros.
        assert_eq!(!crc32c(&[0; 32]), 0x8a91_36aa);
    }

    #[test]
    fn a_directorys_size_is_known_before_its_content() {
        for count in [1_usize, 5, 200, 5000] {
            let names: Vec<String> = (0..count).map(|n| format!("{n:06}{}", "x".repeat(n % 90))).collect();
            let entries: Vec<Dirent> =
                names.iter().map(|name| Dirent { name: name.as_bytes(), nid: 1, kind: 1 }).collect();
            let size = directory_size(names.iter().map(String::as_bytes));
            assert_eq!(directory(&entries).len() as u64, size, "{count}");
        }
    }

    #[test]
    fn attributes_that_no_file_system_has_are_left_out_and_impossible_ones_refused() {
        let encode = |name: &str, value: &[u8]| xattrs([(name.as_bytes(), value)].into_iter());
        assert_eq!(encode("system.other", b"x"), Some(Vec::new()));
        assert_eq!(encode("user.", b"x"), None);
        assert_eq!(encode(&format!("user.{}", "n".repeat(256)), b"x"), None);
        assert_eq!(encode("user.a", &vec![0; 1 << 16]), None);
        assert_eq!(encode("user.a", b"xyz").unwrap().len(), 12 + 8);
    }

    #[test]
    fn devices_are_numbered_as_by_the_kernel() {
        assert_eq!(device(0, 0), 0);
        assert_eq!(device(1, 3), 0x103);
        assert_eq!(device(259, 70000), 0x1111_0370);
    }
}
