//! Named points at which `scripts/chaos kill9` makes the server die, each at the worst moments of its stage. Without the feature
//! `fail-points` there is nothing of it in the binary.

use std::fmt;

/// A stage that the server may die in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailPoint {
    /// The pushed objects are kept, the build is queued, its commit is pinned, the push is answered.
    Receive,
    /// The pushed tree is read; it is in the build container.
    Checkout,
    /// The build container runs; it has ended.
    Compile,
    /// Layers are made, compressed, spooled.
    Slug,
    /// A layer is on its way; all layers are in the registry and the manifest is not; it is, and nothing says so.
    Push,
    /// Before and after the commit that makes a release.
    RecordRelease,
    /// The release is the target; a container is made; it runs.
    Start,
    /// A replica has become ready.
    Probe,
    /// Routes are decided, published but not acknowledged, acknowledged but not recorded as a success.
    Switch,
    /// Routes are out and the replica is not told; it is told and does not know; records are gone and containers are not.
    Retire,
}

impl FailPoint {
    /// All of them, in the order in which a push comes by.
    pub const ALL: [Self; 10] = [
        Self::Receive,
        Self::Checkout,
        Self::Compile,
        Self::Slug,
        Self::Push,
        Self::RecordRelease,
        Self::Start,
        Self::Probe,
        Self::Switch,
        Self::Retire,
    ];

    /// As in `record-release`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Receive => "receive",
            Self::Checkout => "checkout",
            Self::Compile => "compile",
            Self::Slug => "slug",
            Self::Push => "push",
            Self::RecordRelease => "record-release",
            Self::Start => "start",
            Self::Probe => "probe",
            Self::Switch => "switch",
            Self::Retire => "retire",
        }
    }
}

impl fmt::Display for FailPoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Comes by a point. May not return, with the feature `fail-points`.
#[cfg(feature = "fail-points")]
pub fn reached(point: FailPoint) {
    fail::fail_point!(point.name());
}

/// Comes by a point. May not return, with the feature `fail-points`.
#[cfg(not(feature = "fail-points"))]
#[inline(always)]
pub fn reached(_: FailPoint) {}
