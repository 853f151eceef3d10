//! What goes on for long: streams that end when the caller may not see them any more.

use futures::{Stream, StreamExt, stream::BoxStream};

use super::{Caller, CommandError, Commands};
use crate::{
    domain::{TenantName, Verb},
    places::{NoPlace, Place},
};

/// Logs and builds that are followed at a time, over all tenants and of one.
pub(super) const MAX_FOLLOWED: usize = 1000;
pub(super) const MAX_OF_TENANT: usize = 200;

impl Commands {
    /// A place among those who follow.
    pub(super) fn follow_place(&self, tenant: &TenantName) -> Result<Place, CommandError> {
        self.follow_places.try_take(tenant).map_err(|reason| {
            CommandError::TryLater(match reason {
                NoPlace::All => format!("{MAX_FOLLOWED} logs are followed already; try again later"),
                NoPlace::Share(limit) => {
                    format!("{limit} logs of {tenant} are followed already, which is the most; end one of them first")
                }
            })
        })
    }

    /// Passes on what comes, which holds its place meanwhile. It ends with an error when the caller may not read the tenant's things any
    /// more, and after any other error.
    pub(super) fn while_allowed<T: Send + 'static>(
        &self,
        caller: &Caller,
        tenant: &TenantName,
        place: Place,
        items: impl Stream<Item = Result<T, CommandError>> + Send + 'static,
    ) -> BoxStream<'static, Result<T, CommandError>> {
        let (commands, caller, tenant) = (self.clone(), caller.clone(), tenant.clone());
        let denied = async move { commands.access_lost(&caller, Verb::Read, &tenant).await };
        let state = Some((Box::pin(items), Box::pin(denied), place));
        futures::stream::unfold(state, async |state| {
            let (mut items, mut denied, place) = state?;
            tokio::select! {
                // Lines may come without end.
                biased;
                denied = &mut denied => Some((Err(denied), None)),
                item = items.next() => match item? {
                    Ok(item) => Some((Ok(item), Some((items, denied, place)))),
                    Err(error) => Some((Err(error), None)),
                },
            }
        })
        .boxed()
    }
}
