//! How many connections may be open: of users in all and of one user, not yet authenticated in all and from one address.
//!
//! Who it is shows only after the login, so that is when users are counted. Operators are not: they get in whatever users do.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::{
    commands::Caller,
    domain::UserName,
    places::{self, NoPlace, Places},
};

/// Limits on connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectionLimits {
    /// Open and authenticated, of users who are not operators.
    pub total: usize,
    /// The same, of one user.
    pub per_user: usize,
    /// Open and not authenticated in all.
    pub unauthenticated: usize,
    /// Open and not authenticated from one address (IPv6: one /64).
    pub unauthenticated_per_address: usize,
}

impl Default for ConnectionLimits {
    fn default() -> Self {
        Self { total: 512, per_user: 32, unauthenticated: 64, unauthenticated_per_address: 16 }
    }
}

/// Why a connection was turned away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TurnedAway {
    #[error("the server has as many connections as it takes; try again in a moment")]
    Total,
    #[error("you have {0} connections open already, as many as one user may; close some, then try again")]
    User(usize),
    #[error("too many connections are waiting to log in; try again in a moment")]
    Unauthenticated,
    #[error("too many connections from this address are waiting to log in; try again in a moment")]
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
    users: Arc<Places<UserName>>,
}

impl Admission {
    /// Nothing is open yet.
    pub fn new(limits: ConnectionLimits) -> Self {
        Self { limits, counts: Arc::default(), users: Arc::new(Places::new(limits.total, limits.per_user)) }
    }

    /// Takes a place for a new connection, or says why there is none.
    pub fn admit(&self, address: IpAddr) -> Result<Place, TurnedAway> {
        let address = network(address);
        let mut counts = self.lock();
        let from_here = counts.by_address.get(&address).copied().unwrap_or_default();
        if from_here >= self.limits.unauthenticated_per_address {
            return Err(TurnedAway::Address);
        }
        if counts.unauthenticated >= self.limits.unauthenticated {
            return Err(TurnedAway::Unauthenticated);
        }
        counts.total += 1;
        counts.unauthenticated += 1;
        counts.by_address.insert(address, from_here + 1);
        Ok(Place { admission: self.clone(), address, authenticated: false, user: None })
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
    /// Held, not looked at.
    user: Option<places::Place>,
}

impl Place {
    /// The connection counts as one of this user's from now on, unless there is no room for it.
    pub fn authenticated(&mut self, caller: &Caller) -> Result<(), TurnedAway> {
        if self.authenticated {
            return Ok(());
        }
        if !caller.operator {
            let taken = self.admission.users.try_take(&caller.user);
            self.user = Some(taken.map_err(|reason| match reason {
                NoPlace::All => TurnedAway::Total,
                NoPlace::Share(limit) => TurnedAway::User(limit),
            })?);
        }
        self.leave_the_waiting();
        Ok(())
    }

    fn leave_the_waiting(&mut self) {
        if !std::mem::replace(&mut self.authenticated, true) {
            self.admission.logged_in(self.address);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.leave_the_waiting();
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
    use crate::commands::Door;

    fn caller(user: &str, operator: bool) -> Caller {
        Caller { user: user.parse().unwrap(), operator, door: Door::Ssh }
    }

    #[test]
    fn places_are_counted_and_given_back() {
        let limits = ConnectionLimits { total: 9, per_user: 9, unauthenticated: 3, unauthenticated_per_address: 2 };
        let admission = Admission::new(limits);
        let one: IpAddr = "192.0.2.1".parse().unwrap();
        let mapped: IpAddr = "::ffff:192.0.2.1".parse().unwrap();
        let two: IpAddr = "2001:db8::1".parse().unwrap();
        let neighbour: IpAddr = "2001:db8::2".parse().unwrap();
        let mut first = admission.admit(one).unwrap();
        let second = admission.admit(mapped).unwrap();
        assert_eq!(admission.admit(one).unwrap_err(), TurnedAway::Address);
        let _third = admission.admit(two).unwrap();
        assert_eq!(admission.admit(neighbour).unwrap_err(), TurnedAway::Unauthenticated);
        first.authenticated(&caller("ann", false)).unwrap();
        first.authenticated(&caller("ann", false)).unwrap();
        let fourth = admission.admit(neighbour).unwrap();
        assert_eq!(admission.admit(one).unwrap_err(), TurnedAway::Unauthenticated);
        drop(second);
        assert_eq!(admission.admit(two).unwrap_err(), TurnedAway::Address);
        drop((fourth, first));
        assert_eq!(admission.open(), 1);
        assert!(admission.counts.lock().unwrap().by_address.len() == 1);
    }

    #[test]
    fn a_user_has_a_share_and_operators_get_in_whatever_users_do() {
        let limits = ConnectionLimits { total: 3, per_user: 2, unauthenticated: 9, unauthenticated_per_address: 9 };
        let admission = Admission::new(limits);
        let log_in = |user: &str, operator| {
            let mut place = admission.admit("192.0.2.1".parse().unwrap()).unwrap();
            place.authenticated(&caller(user, operator)).map(|()| place)
        };
        let ann = [log_in("ann", false).unwrap(), log_in("ann", false).unwrap()];
        assert_eq!(log_in("ann", false).unwrap_err(), TurnedAway::User(2));
        let bob = log_in("bob", false).unwrap();
        assert_eq!(log_in("cat", false).unwrap_err(), TurnedAway::Total);
        let operator: Vec<_> = (0..5).map(|_| log_in("opal", true).unwrap()).collect();
        assert_eq!(admission.open(), 8);
        drop((ann, operator));
        let _ann = log_in("ann", false).unwrap();
        drop(bob);
        assert_eq!(admission.open(), 1);
    }
}
