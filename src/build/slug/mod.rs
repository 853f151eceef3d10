//! The slug: what makes an app's image of a stack, as content-addressed layers.
//!
//! From the bottom: the `run` stack, one layer for each directory that a buildpack names in `/meta/layers`, one for everything else that
//! the compile step added or changed, and on top the source, made straight from git. The source comes last since it is what changes most:
//! a code-only push then replaces the topmost layer and nothing else, in the registry and on the hosts. For that to be right the source
//! layer leaves out what the compile step replaced or deleted (the [`Shadow`]).

mod gzip;
mod ignore;
mod image;
mod layer;
mod publish;
mod shadow;
mod sizes;
mod source_layer;
mod split;
mod spool;

pub use ignore::{FILE as SLUGIGNORE, SlugIgnore};
pub use image::{ImageDescription, ImageFiles, LayerRef};
pub use layer::{LayerWriter, OWNER, RawLayer, TarWriter, in_app};
pub use publish::{Lost, PublishError, Publisher};
pub use shadow::Shadow;
pub use sizes::{Sizes, human_size};
pub use source_layer::{source_layer, write_source};
pub use split::{LayerDirectory, SplitError, SplitPlan, SplitSlug, Splitter};
