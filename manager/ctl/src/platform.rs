//! Platforms of images: `os/architecture[/variant]` in Go's names.

use std::fmt;
use std::str::FromStr;

use orlop_proto::containerd::types;
use orlop_proto::error::{Error, Result};
use orlop_proto::kind::Kind;
use orlop_proto::spec::image::Image as Config;
use serde::{Deserialize, Serialize};

/// A platform, normalized on construction by parsing.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Platform {
    /// GOOS.
    pub os: String,
    /// GOARCH.
    pub architecture: String,
    /// Variant of the architecture, such as `v8`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

impl Platform {
    /// The platform of this machine.
    pub fn host() -> Platform {
        normalized("linux", std::env::consts::ARCH, None)
    }

    /// The platform of the option, or this machine's.
    ///
    /// # Errors
    ///
    /// `InvalidArgument` for what is not a platform.
    pub fn wanted(option: Option<&str>) -> Result<Platform> {
        option.filter(|text| !text.is_empty()).map_or_else(|| Ok(Platform::host()), str::parse)
    }

    /// The platform in an image's configuration.
    pub fn of_config(config: &Config) -> Platform {
        normalized(&config.os, &config.architecture, config.variant.as_deref())
    }

    /// Whether an image for `found` runs where this platform is wanted.
    pub fn accepts(&self, found: &Platform) -> bool {
        let found = normalized(&found.os, &found.architecture, found.variant.as_deref());
        self.os == found.os && self.architecture == found.architecture && self.variant == found.variant
    }
}

/// Other names for the same, as containerd's package platforms knows them.
fn normalized(os: &str, architecture: &str, variant: Option<&str>) -> Platform {
    let os = os.to_lowercase();
    let os = if os == "macos" { "darwin".to_owned() } else { os };
    let (architecture, variant) = match (architecture.to_lowercase().as_str(), variant.unwrap_or("")) {
        ("x86_64" | "x86-64" | "amd64", "" | "v1") => ("amd64".to_owned(), ""),
        ("x86_64" | "x86-64" | "amd64", variant) => ("amd64".to_owned(), variant),
        ("i386" | "x86" | "386", _) => ("386".to_owned(), ""),
        ("aarch64" | "arm64", "" | "8" | "v8") => ("arm64".to_owned(), ""),
        ("aarch64" | "arm64", variant) => ("arm64".to_owned(), variant),
        ("armhf", _) => ("arm".to_owned(), "v7"),
        ("armel", _) => ("arm".to_owned(), "v6"),
        ("arm", "" | "7") => ("arm".to_owned(), "v7"),
        ("arm", "5") => ("arm".to_owned(), "v5"),
        ("arm", "6") => ("arm".to_owned(), "v6"),
        ("arm", "8") => ("arm".to_owned(), "v8"),
        (architecture, variant) => (architecture.to_owned(), variant),
    };
    let variant = (!variant.is_empty()).then(|| variant.to_owned());
    Platform { os, architecture, variant }
}

impl FromStr for Platform {
    type Err = Error;

    /// `os/architecture[/variant]`, or one of the first two alone.
    fn from_str(text: &str) -> Result<Platform> {
        let parts: Vec<&str> = text.split('/').collect();
        let named = |part: &&str| {
            !part.is_empty()
                && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte))
        };
        if !parts.iter().all(named) {
            return Err(Error::new(Kind::InvalidArgument, "platform", format!("{text:?}")));
        }
        match parts.as_slice() {
            [only @ ("linux" | "windows" | "darwin" | "freebsd")] => {
                Ok(normalized(only, std::env::consts::ARCH, None))
            }
            [architecture] => Ok(normalized("linux", architecture, None)),
            [os, architecture] => Ok(normalized(os, architecture, None)),
            [os, architecture, variant] => Ok(normalized(os, architecture, Some(variant))),
            _ => Err(Error::new(Kind::InvalidArgument, "platform", format!("{text:?}"))),
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match self.variant.as_deref() {
            Some(variant) if !variant.is_empty() => write!(f, "/{variant}"),
            _ => Ok(()),
        }
    }
}

impl From<Platform> for types::Platform {
    fn from(platform: Platform) -> types::Platform {
        types::Platform {
            os: platform.os,
            architecture: platform.architecture,
            variant: platform.variant.unwrap_or_default(),
            os_version: String::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_names_mean_the_same() {
        for (text, shown) in [
            ("linux/x86_64", "linux/amd64"),
            ("amd64", "linux/amd64"),
            ("linux/arm64/v8", "linux/arm64"),
            ("linux/arm", "linux/arm/v7"),
            ("linux/arm/6", "linux/arm/v6"),
            ("windows/amd64", "windows/amd64"),
        ] {
            assert_eq!(text.parse::<Platform>().unwrap().to_string(), shown, "{text}");
        }
    }

    #[test]
    fn what_is_no_platform_is_refused() {
        for text in ["", "a/b/c/d", "linux/", "linux/am d64"] {
            assert_eq!(text.parse::<Platform>().unwrap_err().kind(), Kind::InvalidArgument, "{text}");
        }
    }

    #[test]
    fn a_variant_must_fit() {
        let wanted: Platform = "linux/arm64".parse().unwrap();
        let found = |variant: &str| Platform {
            os: "linux".into(),
            architecture: "arm64".into(),
            variant: (!variant.is_empty()).then(|| variant.to_owned()),
        };
        assert!(wanted.accepts(&found("")) && wanted.accepts(&found("v8")));
        assert!(!wanted.accepts(&found("v9")));
    }
}
