//! Descriptors that come over a unix socket (`unix(7)`, SCM_RIGHTS).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Receives one message with one descriptor, as `--console-socket` peers send it; without waiting.
///
/// Descriptors beyond the first are closed. A message without any is an error of kind `InvalidData`, no message at
/// all one of kind `WouldBlock`, and the end of the stream one of kind `UnexpectedEof`.
pub fn receive_descriptor(socket: BorrowedFd) -> io::Result<OwnedFd> {
    const AT_MOST: usize = 4;
    let mut text = [0u8; 256];
    let mut vector = libc::iovec { iov_base: text.as_mut_ptr().cast(), iov_len: text.len() };
    // Room for the header and the numbers, aligned as a header must be.
    let mut control = [0u64; 8];
    // SAFETY: msghdr is plain data for which all zeroes is a valid value.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut vector;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = std::mem::size_of_val(&control) as _;
    // SAFETY: the message leads to `text` and `control` with their true sizes, and all outlive the call.
    let length = unsafe {
        libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_CMSG_CLOEXEC | libc::MSG_DONTWAIT)
    };
    if length < 0 {
        return Err(io::Error::last_os_error());
    }
    let mut received = Vec::new();
    // SAFETY: the kernel filled `control`, whose headers CMSG_FIRSTHDR and CMSG_NXTHDR walk within msg_controllen; an
    // SCM_RIGHTS payload is a row of descriptors that the kernel has just made for us.
    unsafe {
        let mut header = libc::CMSG_FIRSTHDR(&raw const message);
        while !header.is_null() {
            if (*header).cmsg_level == libc::SOL_SOCKET && (*header).cmsg_type == libc::SCM_RIGHTS {
                let bytes = (*header).cmsg_len as usize - libc::CMSG_LEN(0) as usize;
                let numbers = libc::CMSG_DATA(header).cast::<libc::c_int>();
                for at in 0..(bytes / std::mem::size_of::<libc::c_int>()).min(AT_MOST * 4) {
                    received.push(OwnedFd::from_raw_fd(numbers.add(at).read_unaligned()));
                }
            }
            header = libc::CMSG_NXTHDR(&raw const message, header);
        }
    }
    match received.into_iter().next() {
        Some(descriptor) => Ok(descriptor),
        None if length == 0 => Err(io::ErrorKind::UnexpectedEof.into()),
        None => Err(io::ErrorKind::InvalidData.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

    use super::*;

    #[test]
    fn receives_one_descriptor() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let kind = |result: io::Result<OwnedFd>| result.map(drop).map_err(|e| e.kind());
        assert_eq!(kind(receive_descriptor(ours.as_fd())), Err(io::ErrorKind::WouldBlock));
        let null = std::fs::File::open("/dev/null").unwrap();
        let numbers = [null.as_raw_fd()];
        let control = [ControlMessage::ScmRights(&numbers)];
        let text = [std::io::IoSlice::new(b"/dev/ptmx")];
        sendmsg::<()>(theirs.as_raw_fd(), &text, &control, MsgFlags::empty(), None).unwrap();
        assert!(receive_descriptor(ours.as_fd()).is_ok());
        drop(theirs);
        assert_eq!(kind(receive_descriptor(ours.as_fd())), Err(io::ErrorKind::UnexpectedEof));
    }
}
