//! How many connections may be open: in all, not yet authenticated in all, and not yet authenticated from one address.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Limits on connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectionLimits {
    /// Open in all.
    pub total: usize,
    /// Open and not authenticated in all.
    pub unauthenticated: usize,
    /// Open and not authenticated from one address (IPv6: one /64).
    pub unauthenticated_per_address: usize,
}

impl Default for ConnectionLimits {
    fn default() -> Self {
        Self { total: 512, unauthenticated: 64, unauthenticated_per_address: 16 }
    }
}

/// Why a connection was turned away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TurnedAway {
    #[error("the server has as many connections as it takes")]
    Total,
    #[error("too many connections are waiting to log in")]
    Unauthenticated,
    #[error("too many connections from this address are waiting to log in")]
    Address,
}

#[derive(Debug, Default)]
struct Counts {
    total: usize,
    unauthenticated: usize,
    by_address: HashMap<IpAddr, usize>,
}

/// Counts connections. Clones share the counts.
#[derive(Debug, Clone)]
pub struct Admission {
    limits: ConnectionLimits,
    counts: Arc<Mutex<Counts>>,
}

impl Admission {
    /// Nothing is open yet.
    pub fn new(limits: ConnectionLimits) -> Self {
        Self { limits, counts: Arc::default() }
    }

    /// Takes a place for a new connection, or says why there is none.
    pub fn admit(&self, address: IpAddr) -> Result<Place, TurnedAway> {
        let address = network(address);
        let mut counts = self.lock();
        let from_here = counts.by_address.get(&address).copied().unwrap_or_default();
        if counts.total >= self.limits.total {
            return Err(TurnedAway::Total);
        }
        if from_here >= self.limits.unauthenticated_per_address {
            return Err(TurnedAway::Address);
        }
        if counts.unauthenticated >= self.limits.unauthenticated {
            return Err(TurnedAway::Unauthenticated);
        }
        counts.total += 1;
        counts.unauthenticated += 1;
        counts.by_address.insert(address, from_here + 1);
        Ok(Place { admission: self.clone(), address, authenticated: false })
    }

    /// Open connections in all.
    pub fn open(&self) -> usize {
        self.lock().total
    }

    fn lock(&self) -> MutexGuard<'_, Counts> {
        // The counts are whole between any two statements that can panic.
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn logged_in(&self, address: IpAddr) {
        let mut counts = self.lock();
        counts.unauthenticated = counts.unauthenticated.saturating_sub(1);
        let left = counts.by_address.get(&address).copied().unwrap_or_default().saturating_sub(1);
        if left == 0 {
            counts.by_address.remove(&address);
        } else {
            counts.by_address.insert(address, left);
        }
    }
}

/// The place of one connection; given back when it is dropped.
#[derive(Debug)]
pub struct Place {
    admission: Admission,
    address: IpAddr,
    authenticated: bool,
}

impl Place {
    /// The connection no longer counts as one that is not authenticated.
    pub fn authenticated(&mut self) {
        if !std::mem::replace(&mut self.authenticated, true) {
            self.admission.logged_in(self.address);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.authenticated();
        let mut counts = self.admission.lock();
        counts.total = counts.total.saturating_sub(1);
    }
}

/// One customer of an IPv6 provider has a whole /64.
fn network(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V6(v6) => match v6.to_ipv4_mapped() {
            Some(v4) => IpAddr::V4(v4),
            None => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX))),
        },
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_counted_and_given_back() {
        let admission =
            Admission::new(ConnectionLimits { total: 4, unauthenticated: 3, unauthenticated_per_address: 2 });
        let one: IpAddr = "192.0.2.1".parse().unwrap();
        let mapped: IpAddr = "::ffff:192.0.2.1".parse().unwrap();
        let two: IpAddr = "2001:db8::1".parse().unwrap();
        let neighbour: IpAddr = "2001:db8::2".parse().unwrap();
        let mut first = admission.admit(one).unwrap();
        let second = admission.admit(mapped).unwrap();
        assert_eq!(admission.admit(one).unwrap_err(), TurnedAway::Address);
        let _third = admission.admit(two).unwrap();
        assert_eq!(admission.admit(neighbour).unwrap_err(), TurnedAway::Unauthenticated);
        first.authenticated();
        first.authenticated();
        let fourth = admission.admit(neighbour).unwrap();
        assert_eq!(admission.admit(one).unwrap_err(), TurnedAway::Total);
        drop(second);
        assert_eq!(admission.admit(two).unwrap_err(), TurnedAway::Address);
        drop((fourth, first));
        assert_eq!(admission.open(), 1);
        assert!(admission.counts.lock().unwrap().by_address.len() == 1);
    }
}
