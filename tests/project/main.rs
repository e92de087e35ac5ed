//! Black-box suite: the rules that the repository sets itself. Needs no root.

mod dependencies;
mod documents;
mod install;
mod release;
mod sources;
