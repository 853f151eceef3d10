//! How many connections may be open: of users in all and of one user, not yet authenticated in all and from one address.
//!
//! Who it is shows only after the login, so that is when users are counted. Operators are not: they get in whatever users do. A connection
//! beyond what may log in at once waits for its turn, and nothing is read from it until then; how many wait is bounded as well.

use std::{
    net::{IpAddr, Ipv6Addr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
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
    /// Waiting until they may log in, in all.
    pub waiting: usize,
    /// The same, from one address.
    pub waiting_per_address: usize,
}

impl Default for ConnectionLimits {
    fn default() -> Self {
        Self {
            total: 512,
            per_user: 32,
            unauthenticated: 64,
            unauthenticated_per_address: 16,
            waiting: 1024,
            waiting_per_address: 256,
        }
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

/// Counts connections. Clones share the counts.
#[derive(Debug, Clone)]
pub struct Admission {
    /// Connections that have a [`Place`].
    open: Arc<AtomicUsize>,
    unauthenticated: Arc<Places<IpAddr>>,
    waiting: Arc<Places<IpAddr>>,
    users: Arc<Places<UserName>>,
}

impl Admission {
    /// Nothing is open yet.
    pub fn new(limits: ConnectionLimits) -> Self {
        Self {
            open: Arc::default(),
            unauthenticated: Arc::new(Places::new(limits.unauthenticated, limits.unauthenticated_per_address)),
            waiting: Arc::new(Places::new(limits.waiting, limits.waiting_per_address)),
            users: Arc::new(Places::new(limits.total, limits.per_user)),
        }
    }

    /// A place for a new connection, or one in the line of those that wait for it; or says why there is neither.
    pub fn admit(&self, address: IpAddr) -> Result<Turn, TurnedAway> {
        let address = network(address);
        match self.unauthenticated.try_take(&address) {
            Ok(place) => Ok(Turn::Now(self.place(place))),
            Err(_) => {
                let waiting = self.waiting.try_take(&address).map_err(turned_away)?;
                Ok(Turn::Later(Waiting { admission: self.clone(), address, waiting }))
            }
        }
    }

    /// Open connections in all.
    pub fn open(&self) -> usize {
        self.open.load(Ordering::Acquire)
    }

    fn place(&self, unauthenticated: places::Place) -> Place {
        self.open.fetch_add(1, Ordering::AcqRel);
        Place { admission: self.clone(), unauthenticated: Some(unauthenticated), user: None }
    }
}

/// When a connection may log in.
#[derive(Debug)]
pub enum Turn {
    Now(Place),
    Later(Waiting),
}

/// A connection's place in the line.
#[derive(Debug)]
pub struct Waiting {
    admission: Admission,
    address: IpAddr,
    waiting: places::Place,
}

impl Turn {
    /// The connection's place, waited for if need be.
    pub async fn come(self, patience: Duration) -> Result<Place, TurnedAway> {
        let Waiting { admission, address, waiting } = match self {
            Self::Now(place) => return Ok(place),
            Self::Later(waiting) => waiting,
        };
        let place = admission.unauthenticated.take(&address, patience).await.map_err(turned_away)?;
        drop(waiting);
        Ok(admission.place(place))
    }
}

fn turned_away(reason: NoPlace) -> TurnedAway {
    match reason {
        NoPlace::All => TurnedAway::Unauthenticated,
        NoPlace::Share(_) => TurnedAway::Address,
    }
}

/// The place of one connection; given back when it is dropped.
#[derive(Debug)]
pub struct Place {
    admission: Admission,
    /// Until it has logged in.
    unauthenticated: Option<places::Place>,
    /// Held, not looked at.
    user: Option<places::Place>,
}

impl Place {
    /// The connection counts as one of this user's from now on, unless there is no room for it.
    pub fn authenticated(&mut self, caller: &Caller) -> Result<(), TurnedAway> {
        if self.unauthenticated.is_none() {
            return Ok(());
        }
        if !caller.operator {
            let taken = self.admission.users.try_take(&caller.user);
            self.user = Some(taken.map_err(|reason| match reason {
                NoPlace::All => TurnedAway::Total,
                NoPlace::Share(limit) => TurnedAway::User(limit),
            })?);
        }
        self.unauthenticated = None;
        Ok(())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.admission.open.fetch_sub(1, Ordering::AcqRel);
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
        Caller { user: user.parse().unwrap(), operator, door: Door::Ssh, rights: None, trace: None }
    }

    /// With no more than so many not logged in, in all and from one address, and as many waiting.
    fn limits(unauthenticated: usize, per_address: usize, waiting: usize) -> ConnectionLimits {
        ConnectionLimits {
            unauthenticated,
            unauthenticated_per_address: per_address,
            waiting,
            waiting_per_address: waiting,
            ..ConnectionLimits::default()
        }
    }

    fn now(turn: Result<Turn, TurnedAway>) -> Result<Place, TurnedAway> {
        turn.map(|turn| match turn {
            Turn::Now(place) => place,
            Turn::Later(_) => unreachable!("it has to wait"),
        })
    }

    #[test]
    fn places_are_counted_and_given_back() {
        let admission = Admission::new(limits(3, 2, 0));
        let admit = |address: &str| now(admission.admit(address.parse().unwrap()));
        let (one, mapped) = ("192.0.2.1", "::ffff:192.0.2.1");
        let (two, neighbour) = ("2001:db8::1", "2001:db8::2");
        let mut first = admit(one).unwrap();
        let second = admit(mapped).unwrap();
        assert_eq!(admit(one).unwrap_err(), TurnedAway::Address, "nobody may wait");
        let _third = admit(two).unwrap();
        assert!(admit(neighbour).is_err());
        first.authenticated(&caller("ann", false)).unwrap();
        first.authenticated(&caller("ann", false)).unwrap();
        let fourth = admit(neighbour).unwrap();
        assert!(admit(one).is_err());
        drop(second);
        assert!(admit(two).is_err(), "one /64 is one address");
        drop((fourth, first));
        assert_eq!(admission.open(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn who_comes_too_many_waits_for_a_turn() {
        let admission = Admission::new(limits(2, 1, 1));
        let (one, two): (IpAddr, IpAddr) = ("192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap());
        let first = now(admission.admit(one)).unwrap();
        let later = admission.admit(one).unwrap();
        assert_eq!(admission.admit(one).unwrap_err(), TurnedAway::Address, "the line is bounded");
        let second = now(admission.admit(two)).unwrap();
        let waiting = tokio::spawn(later.come(Duration::from_secs(10)));
        tokio::task::yield_now().await;
        drop(first);
        let third = waiting.await.unwrap().unwrap();
        assert_eq!(admission.open(), 2);
        // The line has room again; who waits too long is turned away.
        let later = admission.admit(one).unwrap();
        assert_eq!(later.come(Duration::from_secs(10)).await.unwrap_err(), TurnedAway::Address);
        drop((second, third));
        assert_eq!(admission.open(), 0);
    }

    #[test]
    fn a_user_has_a_share_and_operators_get_in_whatever_users_do() {
        let admission = Admission::new(ConnectionLimits { total: 3, per_user: 2, ..limits(9, 9, 0) });
        let log_in = |user: &str, operator| {
            let mut place = now(admission.admit("192.0.2.1".parse().unwrap())).unwrap();
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
