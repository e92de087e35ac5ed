//! The error that crosses module borders: kind, operation, object, cause.

use std::borrow::Cow;
use std::error::Error as StdError;
use std::fmt;
use std::io;

use crate::kind::Kind;

/// A result with [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error that says what kind it is, what was being done, and to what: `mount /proc: permission denied`.
///
/// Context is attached once, where the operation and object are known; the message is shown once, where the
/// error is finally handled.
#[derive(Debug)]
pub struct Error {
    kind: Kind,
    operation: Cow<'static, str>,
    object: String,
    cause: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    /// An error whose whole explanation is its kind: `container "x": not found`.
    pub fn new(kind: Kind, operation: impl Into<Cow<'static, str>>, object: impl Into<String>) -> Self {
        Error { kind, operation: operation.into(), object: object.into(), cause: None }
    }

    /// An error with a cause, which is an error or a sentence.
    pub fn because(
        kind: Kind,
        operation: impl Into<Cow<'static, str>>,
        object: impl Into<String>,
        cause: impl Into<Box<dyn StdError + Send + Sync>>,
    ) -> Self {
        Error { kind, operation: operation.into(), object: object.into(), cause: Some(cause.into()) }
    }

    /// An error with a text of its own, for callers that match it word by word.
    pub fn exactly(kind: Kind, text: impl Into<String>) -> Self {
        Error::because(kind, "", "", text.into())
    }

    /// An error of a system call; the kind follows from it.
    pub fn io(operation: impl Into<Cow<'static, str>>, object: impl Into<String>, cause: io::Error) -> Self {
        Error::because(Kind::from_io(&cause), operation, object, cause)
    }

    /// What went wrong, for callers that act on it.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// What was being done.
    pub fn operation(&self) -> &str {
        &self.operation
    }

    /// What it was done to.
    pub fn object(&self) -> &str {
        &self.object
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.operation)?;
        if !self.object.is_empty() {
            write!(f, " {}", self.object)?;
        }
        match &self.cause {
            Some(cause) if self.operation.is_empty() && self.object.is_empty() => {
                write!(f, "{}", Plain(cause.as_ref()))
            }
            Some(cause) => write!(f, ": {}", Plain(cause.as_ref())),
            None if self.operation.ends_with(&self.kind.to_string()) => Ok(()),
            None => write!(f, ": {}", self.kind),
        }
    }
}

/// An error's text; a system call's without Rust's `(os error N)`, as C and Go programs print it.
struct Plain<'a>(&'a (dyn StdError + Send + Sync + 'static));

impl fmt::Display for Plain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.0.to_string();
        let is_os = self.0.downcast_ref::<io::Error>().is_some_and(|e| e.raw_os_error().is_some());
        match text.rfind(" (os error ") {
            Some(end) if is_os => {
                let words = &text[..end];
                let mut letters = words.chars();
                match letters.next() {
                    Some(first) => write!(f, "{}{}", first.to_lowercase(), letters.as_str()),
                    None => Ok(()),
                }
            }
            _ => f.write_str(&text),
        }
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.cause.as_deref().map(|cause| cause as &(dyn StdError + 'static))
    }
}

/// The status that a gRPC client sees; the only place where one is made from an error.
#[cfg(feature = "grpc")]
impl From<Error> for tonic::Status {
    fn from(error: Error) -> Self {
        tonic::Status::new(tonic::Code::from_i32(error.kind.code()), error.to_string())
    }
}

/// The error behind a status that a gRPC server answered; the server's text is kept as it is.
#[cfg(feature = "grpc")]
impl From<tonic::Status> for Error {
    fn from(status: tonic::Status) -> Self {
        let kind = Kind::from_code(status.code() as i32);
        Error { kind, operation: status.message().to_owned().into(), object: String::new(), cause: None }
    }
}

/// Attaches operation and object to an error of a system call.
pub trait Context<T> {
    /// Turns the error into an [`Error`] that names the operation and its object.
    fn context(self, operation: impl Into<Cow<'static, str>>, object: impl Into<String>) -> Result<T>;
}

impl<T, E: Into<io::Error>> Context<T> for std::result::Result<T, E> {
    fn context(self, operation: impl Into<Cow<'static, str>>, object: impl Into<String>) -> Result<T> {
        self.map_err(|error| Error::io(operation, object, error.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_kind_operation_and_object() {
        let error = Error::io("mount", "/proc", io::Error::from_raw_os_error(13));
        assert_eq!(error.to_string(), "mount /proc: permission denied");
        assert_eq!(error.kind(), Kind::PermissionDenied);
    }

    #[test]
    fn says_the_kind_when_there_is_no_cause() {
        assert_eq!(
            Error::new(Kind::NotFound, "container", "\"x\"").to_string(),
            "container \"x\": not found"
        );
    }

    #[test]
    fn keeps_a_sentence_as_it_is() {
        let error = Error::because(Kind::InvalidArgument, "read", "config.json", "no process");
        assert_eq!(error.to_string(), "read config.json: no process");
    }
}
