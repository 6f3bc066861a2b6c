//! The images of a run. Each has a tag made from its content, so that an image that a user has loaded is never replaced, used or removed.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::image;

/// The registry part of images that are loaded and not pushed.
pub(super) const LOADED: &str = "computer-operator.dev";

/// One packed image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Packed {
    /// Its full name.
    pub reference: String,
    /// An OCI layout that is also a `docker load` archive.
    pub archive: PathBuf,
}

/// What a cluster needs.
#[derive(Clone, Debug)]
pub(super) struct Images {
    pub operator: Packed,
    /// The image of the machines. None: the cluster has it, or pulls that of the chart.
    pub machine: Option<Packed>,
}

impl Images {
    pub fn all(&self) -> impl Iterator<Item = &Packed> {
        std::iter::once(&self.operator).chain(&self.machine)
    }

    /// The arguments of Helm that name them.
    pub fn values(&self) -> Result<Vec<String>> {
        let mut values = self.operator.values("image")?;
        if let Some(machine) = &self.machine {
            values.extend(machine.values("defaultClass.image")?);
        }
        Ok(values)
    }
}

impl Packed {
    fn values(&self, key: &str) -> Result<Vec<String>> {
        let (name, tag) = self.reference.rsplit_once(':').context("an image's name needs a tag")?;
        let (registry, repository) = name.split_once('/').context("an image's name needs a registry")?;
        let value = format!("{key}.registry={registry},{key}.repository={repository},{key}.tag={tag}");
        Ok(vec!["--set".to_owned(), value])
    }
}

/// Compiles and packs the operator. `machine`: also the image of the machines, if this machine has a static busybox for it.
pub(super) fn pack(workspace: &Path, folder: &Path, prefix: &str, machine: bool) -> Result<Images> {
    fs::create_dir_all(folder)?;
    let binary = image::build_shared(workspace)?;
    let operator = tagged(prefix, "operator", &fs::read(&binary)?, folder);
    image::operator_as(&operator.reference, &binary, &operator.archive)?;
    let machine = if machine && Path::new(image::BUSYBOX).exists() {
        let machine = tagged(prefix, "machine", &fs::read(image::BUSYBOX)?, folder);
        image::machine_as(&machine.reference, &machine.archive)?;
        Some(machine)
    } else {
        None
    };
    Ok(Images { operator, machine })
}

fn tagged(prefix: &str, name: &str, content: &[u8], folder: &Path) -> Packed {
    let digest = image::oci::sha256(content);
    Packed { reference: format!("{prefix}/{name}:demo-{}", &digest[..12]), archive: folder.join(format!("demo-{name}.tar")) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn other_content_is_another_image() {
        let packed = |content: &[u8]| tagged("localhost:5000/team", "operator", content, Path::new("/images"));
        assert_ne!(packed(b"a").reference, packed(b"b").reference);
        assert_eq!(packed(b"a").archive, Path::new("/images/demo-operator.tar"));
        let images = Images { operator: packed(b"a"), machine: Some(tagged(LOADED, "machine", b"m", Path::new("/images"))) };
        let tag = packed(b"a").reference.rsplit_once(':').unwrap().1.to_owned();
        assert!(tag.starts_with("demo-"), "{tag}");
        let values = images.values().unwrap();
        assert_eq!(values[1], format!("image.registry=localhost:5000,image.repository=team/operator,image.tag={tag}"));
        assert!(values[3].starts_with("defaultClass.image.registry=computer-operator.dev,defaultClass.image.repository=machine,"));
        assert_eq!(images.all().count(), 2);
    }
}
