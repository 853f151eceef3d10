//! Places at something bounded: so many in all, and of these so many for each holder, so that nobody can take all of them.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout_at},
};

/// Counts places by their holders.
#[derive(Debug)]
pub struct Places<K> {
    all: Arc<Semaphore>,
    most: usize,
    each: usize,
    /// The shares of those who hold or want a place.
    shares: Mutex<HashMap<K, Arc<Semaphore>>>,
}

/// A place; given back when it is dropped.
#[derive(Debug)]
pub struct Place {
    _share: OwnedSemaphorePermit,
    _any: OwnedSemaphorePermit,
}

/// Why there is no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoPlace {
    /// All are taken.
    All,
    /// The holder has all that one holder may have: so many.
    Share(usize),
}

impl<K: Eq + Hash + Clone> Places<K> {
    /// `all` places, of which one holder may have `each`.
    pub fn new(all: usize, each: usize) -> Self {
        Self { all: Arc::new(Semaphore::new(all)), most: all, each, shares: Mutex::default() }
    }

    /// How many places are taken, and how many there are.
    pub fn taken(&self) -> (usize, usize) {
        (self.most.saturating_sub(self.all.available_permits()), self.most)
    }

    /// A place, if there is one now.
    pub fn try_take(&self, holder: &K) -> Result<Place, NoPlace> {
        let share = self.share(holder).try_acquire_owned().map_err(|_| NoPlace::Share(self.each))?;
        let any = self.all.clone().try_acquire_owned().map_err(|_| NoPlace::All)?;
        Ok(Place { _share: share, _any: any })
    }

    /// A place, waited for. Whoever waits for a share of their own does not stand in the way of others.
    pub async fn take(&self, holder: &K, within: Duration) -> Result<Place, NoPlace> {
        let deadline = Instant::now() + within;
        let share = timeout_at(deadline, self.share(holder).acquire_owned()).await;
        let Ok(Ok(share)) = share else { return Err(NoPlace::Share(self.each)) };
        let any = timeout_at(deadline, self.all.clone().acquire_owned()).await;
        let Ok(Ok(any)) = any else { return Err(NoPlace::All) };
        Ok(Place { _share: share, _any: any })
    }

    fn share(&self, holder: &K) -> Arc<Semaphore> {
        // Nothing panics while it is held.
        let mut shares = self.shares.lock().unwrap_or_else(PoisonError::into_inner);
        // Places, and those who wait for one, hold on to the share.
        shares.retain(|_, share| Arc::strong_count(share) > 1);
        shares.entry(holder.clone()).or_insert_with(|| Arc::new(Semaphore::new(self.each))).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn nobody_takes_all() {
        let places = Places::new(5, 2);
        let first = places.try_take(&"ann").unwrap();
        let second = places.try_take(&"ann").unwrap();
        assert_eq!(places.try_take(&"ann").unwrap_err(), NoPlace::Share(2));
        let others = ["bob", "bob", "cat"].map(|name| places.try_take(&name).unwrap());
        assert_eq!(places.try_take(&"dan").unwrap_err(), NoPlace::All);
        assert_eq!(places.taken(), (5, 5));
        drop(first);
        assert_eq!(places.taken(), (4, 5));
        let third = places.try_take(&"ann").unwrap();
        drop((second, third, others));
        drop(places.try_take(&"eve").unwrap());
        assert!(places.shares.lock().unwrap().len() == 1, "shares of those who are gone are kept");
    }

    #[tokio::test(start_paused = true)]
    async fn waiting_for_ones_own_share_holds_up_nobody_else() {
        let places = Arc::new(Places::new(2, 1));
        let first = places.take(&"ann", SECOND).await.unwrap();
        assert_eq!(places.take(&"ann", SECOND).await.unwrap_err(), NoPlace::Share(1));
        let (waits, of) = (places.clone(), SECOND * 10);
        let waiting = tokio::spawn(async move { waits.take(&"ann", of).await });
        let second = places.take(&"bob", SECOND).await.unwrap();
        assert_eq!(places.take(&"cat", SECOND).await.unwrap_err(), NoPlace::All);
        drop(first);
        let third = waiting.await.unwrap().unwrap();
        assert_eq!(places.try_take(&"ann").unwrap_err(), NoPlace::Share(1));
        drop((second, third));
    }
}
