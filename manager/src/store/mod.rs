//! Metadata that clients make and name.
