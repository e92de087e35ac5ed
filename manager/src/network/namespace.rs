//! Work inside another network namespace.

use std::os::fd::BorrowedFd;

use orlop_host::sys;
use orlop_proto::error::{Context, Error, Result};
use orlop_proto::kind::Kind;

/// Runs `work` in a network namespace, in a thread of its own, which ends with it: whatever happens, no other work finds itself there.
pub fn within<T: Send>(namespace: BorrowedFd, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let inside = || {
        sys::pid::setns(namespace, libc::CLONE_NEWNET).context("enter", "the network namespace")?;
        work()
    };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("netns".into()).spawn_scoped(scope, inside);
        let joined = thread.context("start", "a thread")?.join();
        joined.map_err(|_| Error::because(Kind::Internal, "work in", "the network namespace", "panic"))?
    })
}
