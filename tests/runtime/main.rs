//! Black-box suite: the runtime, called as its users call it.
