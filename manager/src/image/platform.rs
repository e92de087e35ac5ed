//! Platforms of images and how well they match one that is wanted (containerd's platforms package).

use std::fmt;

use serde::{Deserialize, Serialize};

/// An operating system on a processor.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Platform {
    /// `linux`
    #[serde(default)]
    pub os: String,
    /// Go's name of the processor: `amd64`, `arm64`.
    #[serde(default)]
    pub architecture: String,
    /// Variant of the processor: `v7`, `v2`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub variant: String,
}

impl Platform {
    /// This machine's.
    pub fn own() -> Platform {
        let architecture = std::env::consts::ARCH.to_owned();
        Platform { os: "linux".to_owned(), architecture, variant: String::new() }.normalised()
    }

    /// The same platform by its usual names: `x86_64` is `amd64`, `arm64/v8` is `arm64`, `arm` is `arm/v7`.
    pub fn normalised(&self) -> Platform {
        let os = self.os.to_lowercase();
        let (architecture, variant) =
            match (self.architecture.to_lowercase().as_str(), self.variant.to_lowercase()) {
                ("i386" | "386", _) => ("386".to_owned(), String::new()),
                ("x86_64" | "x86-64" | "amd64", variant) if variant == "v1" => {
                    ("amd64".to_owned(), String::new())
                }
                ("x86_64" | "x86-64" | "amd64", variant) => ("amd64".to_owned(), variant),
                ("aarch64" | "arm64", variant) if variant == "8" || variant == "v8" => {
                    ("arm64".to_owned(), String::new())
                }
                ("aarch64" | "arm64", variant) => ("arm64".to_owned(), variant),
                ("armhf", _) => ("arm".to_owned(), "v7".to_owned()),
                ("armel", _) => ("arm".to_owned(), "v6".to_owned()),
                ("arm", variant) if variant.is_empty() || variant == "7" => {
                    ("arm".to_owned(), "v7".to_owned())
                }
                ("arm", variant) if matches!(variant.as_str(), "5" | "6" | "8") => {
                    ("arm".to_owned(), format!("v{variant}"))
                }
                (architecture, variant) => (architecture.to_owned(), variant),
            };
        Platform { os, architecture, variant }
    }

    /// How well an image's platform serves one that is wanted: 0 is itself, greater is worse, `None` does not run.
    ///
    /// A processor runs what was built for lesser variants of it, and 64-bit x86 and ARM run what was built for 32
    /// bits.
    pub fn rank(&self, offered: &Platform) -> Option<u32> {
        let (wanted, offered) = (self.normalised(), offered.normalised());
        if wanted.os != offered.os {
            return None;
        }
        let level = |variant: &str, least: u32| match variant.strip_prefix('v') {
            Some(number) => number.parse().ok(),
            None if variant.is_empty() => Some(least),
            None => None,
        };
        match (wanted.architecture.as_str(), offered.architecture.as_str()) {
            ("amd64", "amd64") => level(&wanted.variant, 1)?.checked_sub(level(&offered.variant, 1)?),
            ("arm", "arm") => level(&wanted.variant, 7)?.checked_sub(level(&offered.variant, 7)?),
            ("arm64", "arm64") if wanted.variant == offered.variant => Some(0),
            ("arm64", "arm64") if offered.variant.is_empty() => Some(1),
            ("arm64", "arm") => 8_u32.checked_sub(level(&offered.variant, 7)?).map(|rank| rank + 100),
            ("amd64", "386") => Some(100),
            (wanted_architecture, architecture) => {
                (wanted_architecture == architecture && wanted.variant == offered.variant).then_some(0)
            }
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match self.variant.as_str() {
            "" => Ok(()),
            variant => write!(f, "/{variant}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn platform(text: &str) -> Platform {
        let mut parts = text.split('/').map(str::to_owned);
        let mut next = || parts.next().unwrap_or_default();
        Platform { os: next(), architecture: next(), variant: next() }.normalised()
    }

    #[test]
    fn knows_usual_names() {
        for (text, expected) in [
            ("linux/amd64", "linux/amd64"),
            ("linux/x86_64/v1", "linux/amd64"),
            ("linux/amd64/v3", "linux/amd64/v3"),
            ("linux/arm64/v8", "linux/arm64"),
            ("linux/arm", "linux/arm/v7"),
            ("linux/armhf", "linux/arm/v7"),
            ("linux/s390x", "linux/s390x"),
        ] {
            assert_eq!(platform(text).to_string(), expected, "{text}");
        }
    }

    #[test]
    fn ranks_what_runs() {
        for (wanted, offered, rank) in [
            ("linux/amd64", "linux/amd64", Some(0)),
            ("linux/amd64/v3", "linux/amd64/v2", Some(1)),
            ("linux/amd64/v3", "linux/amd64", Some(2)),
            ("linux/amd64", "linux/amd64/v3", None),
            ("linux/amd64", "linux/386", Some(100)),
            ("linux/amd64", "linux/arm64", None),
            ("linux/amd64", "windows/amd64", None),
            ("linux/arm/v7", "linux/arm/v6", Some(1)),
            ("linux/arm/v6", "linux/arm/v7", None),
            ("linux/arm64", "linux/arm/v7", Some(101)),
            ("linux/arm64", "linux/arm64", Some(0)),
            ("linux/s390x", "linux/s390x", Some(0)),
        ] {
            assert_eq!(platform(wanted).rank(&platform(offered)), rank, "{wanted} {offered}");
        }
    }
}
