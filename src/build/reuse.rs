//! What makes two builds the same.

use std::collections::BTreeMap;

use sha2::{Digest as _, Sha256};

use super::stacks::Stacks;
use crate::domain::Digest;

/// Changes when slugs of the same parts are made differently.
const FORMAT: &str = "slug 1";

/// Everything that goes into a slug but the source.
pub struct Recipe<'r> {
    /// Content of all buildpacks.
    pub buildpacks: &'r Digest,
    /// Those asked for; empty: detect.
    pub names: &'r [String],
    pub stacks: &'r Stacks,
    /// `build.env`, and the operator's variables.
    pub build_env: &'r BTreeMap<String, String>,
    pub operator_env: &'r BTreeMap<String, String>,
}

impl Recipe<'_> {
    /// Names everything but the source.
    pub fn key(&self) -> Digest {
        // A serialised structure has one reading; concatenated texts would not.
        let parts = serde_json::json!([
            FORMAT,
            self.buildpacks,
            self.names,
            [&self.stacks.build.image.digest, &self.stacks.run.image.digest],
            self.build_env,
            self.operator_env,
        ]);
        Digest::from_sha256(Sha256::digest(parts.to_string()))
    }

    /// Names the slug of a source tree.
    pub fn slug_key(&self, tree: git2::Oid) -> Digest {
        Digest::from_sha256(Sha256::digest(format!("{} {tree}", self.key())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        build::{slug::LayerRef, stacks::Stack},
        domain::ImageRef,
    };

    fn stacks(byte: u8) -> Stacks {
        let digest = Digest::from_sha256([byte; 32]);
        let stack = Stack {
            image: ImageRef { repository: "s".to_owned(), digest: digest.clone() },
            layer: LayerRef { diff_id: digest.clone(), digest, size: 1 },
            env: BTreeMap::new(),
            workdir: "/app".to_owned(),
        };
        Stacks { build: stack.clone(), run: stack }
    }

    #[test]
    fn every_part_counts() {
        let (packs, other_packs) = (Digest::from_sha256([1; 32]), Digest::from_sha256([2; 32]));
        let (one, two) = (stacks(1), stacks(2));
        let (none, some) = (BTreeMap::new(), BTreeMap::from([("A".to_owned(), "b".to_owned())]));
        let names = ["nodejs".to_owned()];
        let base = Recipe { buildpacks: &packs, names: &[], stacks: &one, build_env: &none, operator_env: &none };
        let others = [
            Recipe { buildpacks: &other_packs, ..base },
            Recipe { names: &names, ..base },
            Recipe { stacks: &two, ..base },
            Recipe { build_env: &some, ..base },
            Recipe { operator_env: &some, ..base },
        ];
        let mut keys: Vec<_> = others.iter().map(Recipe::key).collect();
        keys.push(base.key());
        keys.sort();
        keys.dedup();
        assert_eq!(keys.len(), others.len() + 1);
        let tree = |byte| git2::Oid::from_bytes(&[byte; 20]).unwrap();
        assert_ne!(base.slug_key(tree(1)), base.slug_key(tree(2)));
        assert_eq!(base.slug_key(tree(1)), base.slug_key(tree(1)));
    }
}
