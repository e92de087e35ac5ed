//! Error kinds and their codes on the wire.

use std::fmt;

/// What went wrong, in the terms of the gRPC status codes, which ttrpc shares.
///
/// Follows `google.rpc.Code`; the names containerd's clients know as `errdefs` map one to one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(i32)]
pub enum Kind {
    /// The caller gave up.
    Canceled = 1,
    /// No better kind is known.
    Unknown = 2,
    /// The request itself is wrong.
    InvalidArgument = 3,
    /// The time allowed for the operation ran out.
    DeadlineExceeded = 4,
    /// The object does not exist.
    NotFound = 5,
    /// The object exists already.
    AlreadyExists = 6,
    /// The caller may not do this.
    PermissionDenied = 7,
    /// Space, memory or another quota is used up.
    ResourceExhausted = 8,
    /// The object is not in the state that the operation needs.
    FailedPrecondition = 9,
    /// A concurrent change won.
    Aborted = 10,
    /// The offset or range lies outside the object.
    OutOfRange = 11,
    /// The operation does not exist here.
    Unimplemented = 12,
    /// An invariant of ours broke.
    Internal = 13,
    /// The other side cannot be reached now.
    Unavailable = 14,
    /// Stored data is damaged.
    DataLoss = 15,
    /// The caller did not say who it is.
    Unauthenticated = 16,
}

impl Kind {
    /// Every kind, in the order of the codes.
    pub const ALL: [Kind; 16] = [
        Kind::Canceled,
        Kind::Unknown,
        Kind::InvalidArgument,
        Kind::DeadlineExceeded,
        Kind::NotFound,
        Kind::AlreadyExists,
        Kind::PermissionDenied,
        Kind::ResourceExhausted,
        Kind::FailedPrecondition,
        Kind::Aborted,
        Kind::OutOfRange,
        Kind::Unimplemented,
        Kind::Internal,
        Kind::Unavailable,
        Kind::DataLoss,
        Kind::Unauthenticated,
    ];

    /// The gRPC and ttrpc status code.
    pub fn code(self) -> i32 {
        self as i32
    }

    /// The kind of a status code; codes that are not errors or not known are `Unknown`.
    pub fn from_code(code: i32) -> Kind {
        Kind::ALL.into_iter().find(|kind| kind.code() == code).unwrap_or(Kind::Unknown)
    }

    /// The kind that a system call's error means.
    pub fn from_io(error: &std::io::Error) -> Kind {
        use std::io::ErrorKind;
        match error.kind() {
            ErrorKind::NotFound => Kind::NotFound,
            ErrorKind::AlreadyExists => Kind::AlreadyExists,
            ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => Kind::PermissionDenied,
            ErrorKind::InvalidInput => Kind::InvalidArgument,
            ErrorKind::TimedOut => Kind::DeadlineExceeded,
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::OutOfMemory => {
                Kind::ResourceExhausted
            }
            ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => {
                Kind::Unavailable
            }
            ErrorKind::Unsupported => Kind::Unimplemented,
            _ => Kind::Unknown,
        }
    }
}

impl fmt::Display for Kind {
    /// The words that containerd's clients print for the kind.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Canceled => "canceled",
            Kind::Unknown => "unknown",
            Kind::InvalidArgument => "invalid argument",
            Kind::DeadlineExceeded => "deadline exceeded",
            Kind::NotFound => "not found",
            Kind::AlreadyExists => "already exists",
            Kind::PermissionDenied => "permission denied",
            Kind::ResourceExhausted => "resource exhausted",
            Kind::FailedPrecondition => "failed precondition",
            Kind::Aborted => "aborted",
            Kind::OutOfRange => "out of range",
            Kind::Unimplemented => "not implemented",
            Kind::Internal => "internal",
            Kind::Unavailable => "unavailable",
            Kind::DataLoss => "data loss",
            Kind::Unauthenticated => "unauthenticated",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_round_trip() {
        for kind in Kind::ALL {
            assert_eq!(Kind::from_code(kind.code()), kind);
        }
        assert_eq!(Kind::from_code(0), Kind::Unknown);
        assert_eq!(Kind::from_code(99), Kind::Unknown);
    }
}
