//! Media types of what images are made of (OCI image specification, Docker image manifest version 2 schema 2).

/// OCI image index.
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// OCI image manifest.
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// OCI image configuration.
pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// OCI layer, not compressed.
pub const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
/// OCI layer, gzip.
pub const OCI_LAYER_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
/// OCI layer, zstd.
pub const OCI_LAYER_ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
/// Docker manifest list.
pub const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
/// Docker image manifest.
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// Docker image configuration.
pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
/// Docker layer, not compressed.
pub const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar";
/// Docker layer, gzip.
pub const DOCKER_LAYER_GZIP: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";
/// Docker layer, zstd.
pub const DOCKER_LAYER_ZSTD: &str = "application/vnd.docker.image.rootfs.diff.tar.zstd";

/// A layer that is an EROFS image, as containerd 2.2 names it; before, whatever ended in `.erofs` was one.
pub const EROFS_LAYER: &str = "application/vnd.erofs.layer.v1";

/// What a blob is to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// A list of manifests.
    Index,
    /// The manifest of one image.
    Manifest,
    /// An image's configuration.
    Config,
    /// A layer.
    Layer,
    /// Something that images may carry and we do not look into.
    Other,
}

/// What a media type says about a blob; parameters after `;` do not count.
pub fn role(media_type: &str) -> Role {
    match bare(media_type) {
        OCI_INDEX | DOCKER_INDEX => Role::Index,
        OCI_MANIFEST | DOCKER_MANIFEST => Role::Manifest,
        OCI_CONFIG | DOCKER_CONFIG => Role::Config,
        other if is_layer(other) => Role::Layer,
        _ => Role::Other,
    }
}

/// The media type without parameters.
pub fn bare(media_type: &str) -> &str {
    media_type.split(';').next().unwrap_or_default().trim()
}

/// Whether a layer must not be distributed further (it comes from a place of its own).
pub fn is_foreign(media_type: &str) -> bool {
    media_type.contains(".foreign.") || media_type.contains(".nondistributable.")
}

/// What a layer holds once it is decompressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// A tar archive.
    Archive,
    /// An EROFS image.
    Image,
}

/// What a layer of that media type holds.
pub fn form(media_type: &str) -> Form {
    if is_erofs(media_type) { Form::Image } else { Form::Archive }
}

/// Whether a layer is an EROFS image, compressed as a whole or not.
fn is_erofs(media_type: &str) -> bool {
    let name = bare(media_type);
    let name = name.strip_suffix("+zstd").or_else(|| name.strip_suffix("+gzip")).unwrap_or(name);
    name == EROFS_LAYER || name.ends_with(".erofs")
}

fn is_layer(media_type: &str) -> bool {
    if is_erofs(media_type) {
        return true;
    }
    let name = media_type
        .strip_prefix("application/vnd.docker.image.rootfs.")
        .map(|rest| rest.strip_prefix("foreign.").unwrap_or(rest))
        .and_then(|rest| rest.strip_prefix("diff.tar"));
    let name = name.or_else(|| {
        media_type
            .strip_prefix("application/vnd.oci.image.layer.")
            .map(|rest| rest.strip_prefix("nondistributable.").unwrap_or(rest))
            .and_then(|rest| rest.strip_prefix("v1.tar"))
    });
    matches!(name, Some("" | ".gzip" | ".zstd" | "+gzip" | "+zstd"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_roles() {
        for (media_type, expected) in [
            (OCI_INDEX, Role::Index),
            (DOCKER_INDEX, Role::Index),
            (OCI_MANIFEST, Role::Manifest),
            (DOCKER_MANIFEST, Role::Manifest),
            (OCI_CONFIG, Role::Config),
            (DOCKER_CONFIG, Role::Config),
            (OCI_LAYER, Role::Layer),
            (OCI_LAYER_GZIP, Role::Layer),
            (OCI_LAYER_ZSTD, Role::Layer),
            (DOCKER_LAYER, Role::Layer),
            (DOCKER_LAYER_GZIP, Role::Layer),
            (DOCKER_LAYER_ZSTD, Role::Layer),
            ("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", Role::Layer),
            ("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", Role::Layer),
            ("application/vnd.oci.image.manifest.v1+json; charset=utf-8", Role::Manifest),
            ("application/vnd.oci.image.layer.v1.tar+gzip+encrypted", Role::Other),
            ("application/vnd.erofs.layer.v1", Role::Layer),
            ("application/vnd.erofs.layer.v1+zstd", Role::Layer),
            ("application/vnd.oci.image.layer.v1.erofs", Role::Layer),
            ("application/vnd.erofs.layer.v2", Role::Other),
            ("application/vnd.in-toto+json", Role::Other),
            ("", Role::Other),
        ] {
            assert_eq!(role(media_type), expected, "{media_type}");
        }
    }
}
