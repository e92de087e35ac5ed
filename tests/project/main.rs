//! Black-box suite: the rules that the repository sets itself.
