//! Black-box suite: the shim, driven over ttrpc and by Debian's containerd.
