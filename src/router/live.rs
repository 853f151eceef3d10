//! The routes in force: host → environment → replicas, with the requests under way on each replica.
//!
//! A [`Backend`] lives from the table that first names it to the table that no longer does. A replica that leaves and comes back, or
//! another one that was given its address, is a new backend with a new connection pool, so that no pooled connection outlives what it
//! was opened for.

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst},
    },
};

use tokio::{sync::Notify, time::Instant};

use super::{
    backend::{Backend, Lease},
    hold::Holds,
    meter::{Counts, Meter},
    table::{Route, RoutesTable, Upstream},
};
use crate::domain::EnvRef;

/// An environment's route in one table.
#[derive(Debug)]
pub(super) struct LiveRoute {
    pub(super) env: EnvRef,
    pub(super) released: bool,
    backends: Vec<Arc<Backend>>,
    /// Since when it has no replica, if it had one.
    pub(super) empty_since: Option<Instant>,
    /// Where round-robin stands; kept across tables.
    next: Arc<AtomicUsize>,
    /// Its requests; kept across tables, so that there are as many meters as environments in the table.
    pub(super) meter: Arc<Meter>,
}

impl LiveRoute {
    pub(super) fn has_replicas(&self) -> bool {
        !self.backends.is_empty()
    }

    /// Since when a route that comes after this one and has no replica has had none.
    fn emptied(&self) -> Option<Instant> {
        if self.has_replicas() { Some(Instant::now()) } else { self.empty_since }
    }

    /// Whether there is a replica that is neither in `tried` nor `chosen`.
    pub(super) fn has_others(&self, tried: &[u64], chosen: u64) -> bool {
        self.backends.iter().any(|backend| backend.key != chosen && !tried.contains(&backend.key))
    }

    /// The next replica in turn that is not in `tried`, one that lately refused connections only if there is no other.
    fn choose(&self, tried: &[u64]) -> Option<&Arc<Backend>> {
        let count = self.backends.len();
        if count == 0 {
            return None;
        }
        let start = self.next.fetch_add(1, SeqCst);
        let in_turn = || (0..count).map(move |step| &self.backends[start.wrapping_add(step) % count]);
        let untried = |backend: &&Arc<Backend>| !tried.contains(&backend.key);
        in_turn().filter(untried).find(|backend| !backend.is_suspect()).or_else(|| in_turn().find(untried))
    }
}

#[derive(Debug, Default)]
struct Live {
    generation: u64,
    hosts: HashMap<String, Arc<LiveRoute>>,
    environments: HashMap<EnvRef, Arc<LiveRoute>>,
}

/// The routes in force, shared by all connections.
#[derive(Debug, Default)]
pub(super) struct Routes {
    live: RwLock<Live>,
    retired: Mutex<Vec<Arc<Backend>>>,
    drained: Arc<Notify>,
    /// Woken when a table has come into force.
    applied: Notify,
    pub(super) holds: Holds,
    /// Requests that asked for no environment there is.
    pub(super) unrouted: AtomicU64,
    /// Requests of environments that have left the table; those that end later are not in it.
    departed: Mutex<Counts>,
    last_key: AtomicU64,
}

impl Routes {
    /// The route of a host name (lower case, no port).
    pub(super) fn find(&self, host: &str) -> Option<Arc<LiveRoute>> {
        self.live.read().unwrap_or_else(PoisonError::into_inner).hosts.get(host).cloned()
    }

    /// The route of an environment.
    pub(super) fn current(&self, env: &EnvRef) -> Option<Arc<LiveRoute>> {
        self.live.read().unwrap_or_else(PoisonError::into_inner).environments.get(env).cloned()
    }

    /// Resolves when a table has come into force since this was called. Call it, then look, then wait: no table is missed.
    pub(super) fn changed(&self) -> impl Future<Output = ()> + '_ {
        self.applied.notified()
    }

    /// Takes the next replica of the route that is not in `tried`. When the table has changed since the caller found the route, the
    /// route of the new table counts.
    pub(super) fn lease(&self, route: &Arc<LiveRoute>, tried: &[u64]) -> Option<Lease> {
        let mut route = route.clone();
        loop {
            if let Some(lease) = route.choose(tried).and_then(Lease::take) {
                return Some(lease);
            }
            let current = self.current(&route.env)?;
            if Arc::ptr_eq(&current, &route) {
                return None;
            }
            route = current;
        }
    }

    /// Puts a table in force. Requests under way go on where they are.
    pub(super) fn apply(&self, table: &RoutesTable) {
        let mut old: HashMap<(EnvRef, Upstream), Arc<Backend>> = HashMap::new();
        let mut before: HashMap<EnvRef, Arc<LiveRoute>> = HashMap::new();
        for route in self.live.read().unwrap_or_else(PoisonError::into_inner).environments.values() {
            before.insert(route.env.clone(), route.clone());
            for backend in &route.backends {
                old.insert((backend.env.clone(), backend.upstream.clone()), backend.clone());
            }
        }
        let mut live = Live { generation: table.generation, ..Live::default() };
        for (env, route) in &table.environments {
            let backends = self.backends(env, route, &mut old);
            let before = before.get(env);
            let next = before.map(|before| before.next.clone()).unwrap_or_default();
            let meter = before.map(|before| before.meter.clone()).unwrap_or_default();
            let empty_since = before.filter(|_| backends.is_empty()).and_then(|before| before.emptied());
            let route = LiveRoute { env: env.clone(), released: route.released, backends, empty_since, next, meter };
            live.environments.insert(env.clone(), Arc::new(route));
        }
        for (host, env) in &table.hosts {
            match live.environments.get(env) {
                Some(route) => drop(live.hosts.insert(host.clone(), route.clone())),
                None => {
                    tracing::warn!(%host, %env, "the routes table has a host of an environment that it does not have")
                }
            }
        }
        *self.live.write().unwrap_or_else(PoisonError::into_inner) = live;
        for (_, gone) in before.iter().filter(|(env, _)| !table.environments.contains_key(env)) {
            let counts = Counts { under_way: 0, ..gone.meter.read() };
            self.departed.lock().unwrap_or_else(PoisonError::into_inner).add(&counts);
        }
        // Only now: a request that finds its replica retired also finds the new table.
        old.values().for_each(|backend| backend.retire());
        self.applied.notify_waiters();
        self.retired.lock().unwrap_or_else(PoisonError::into_inner).extend(old.into_values());
    }

    /// The backends of a route: those of `old` that stay, which are taken out of it, and new ones.
    fn backends(
        &self,
        env: &EnvRef,
        route: &Route,
        old: &mut HashMap<(EnvRef, Upstream), Arc<Backend>>,
    ) -> Vec<Arc<Backend>> {
        let backend = |upstream: &Upstream| {
            old.remove(&(env.clone(), upstream.clone())).unwrap_or_else(|| {
                let key = self.last_key.fetch_add(1, SeqCst) + 1;
                Arc::new(Backend::new(env.clone(), upstream.clone(), key, self.drained.clone()))
            })
        };
        route.upstreams.iter().map(backend).collect()
    }

    /// The generation in force.
    pub(super) fn generation(&self) -> u64 {
        self.live.read().unwrap_or_else(PoisonError::into_inner).generation
    }

    /// What the environments have been asked since this process began, without those that were asked nothing.
    pub(super) fn counts(&self) -> BTreeMap<EnvRef, Counts> {
        let live = self.live.read().unwrap_or_else(PoisonError::into_inner);
        let counted = live.environments.iter().map(|(env, route)| (env.clone(), route.meter.read()));
        counted.filter(|(_, counts)| *counts != Counts::default()).collect()
    }

    /// What environments were asked that have left the table.
    pub(super) fn departed(&self) -> Counts {
        *self.departed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Replicas that have left the table and still have requests under way, with their number.
    pub(super) fn draining(&self) -> BTreeMap<SocketAddr, u64> {
        let mut retired = self.retired.lock().unwrap_or_else(PoisonError::into_inner);
        retired.retain(|backend| backend.in_flight() > 0);
        let mut draining = BTreeMap::new();
        for backend in retired.iter() {
            let count = backend.in_flight();
            if count > 0 {
                *draining.entry(backend.address()).or_default() += count;
            }
        }
        draining
    }

    /// Waits until a replica that has left the table has answered its last request.
    pub(super) async fn drained(&self) {
        self.drained.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::atomic::AtomicBool, time::Duration};

    use super::*;
    use crate::domain::ReleaseVersion;

    fn env() -> EnvRef {
        "acme/shop/dev".parse().unwrap()
    }

    /// A table with one host, `shop`, and the given replicas, each "ADDRESS NAME vN".
    fn table(generation: u64, replicas: &[(&str, &str, u64)]) -> RoutesTable {
        let upstream = |(address, replica, release): &(&str, &str, u64)| Upstream {
            address: address.parse().unwrap(),
            replica: (*replica).to_owned(),
            release: ReleaseVersion(*release),
        };
        let route = Route { released: true, upstreams: replicas.iter().map(upstream).collect() };
        RoutesTable { generation, hosts: [("shop".to_owned(), env())].into(), environments: [(env(), route)].into() }
    }

    const A: (&str, &str, u64) = ("10.0.0.1:80", "web.1", 1);
    const B: (&str, &str, u64) = ("10.0.0.2:80", "web.2", 1);
    const C: (&str, &str, u64) = ("10.0.0.3:80", "web.3", 1);

    fn lease(routes: &Routes) -> Lease {
        routes.lease(&routes.find("shop").unwrap(), &[]).unwrap()
    }

    #[test]
    fn round_robin_is_fair_under_churn() {
        let routes = Routes::default();
        let mut counts: BTreeMap<String, u32> = BTreeMap::new();
        for generation in 0..200 {
            // Every table has the same replicas under a new generation, so all of them stay.
            routes.apply(&table(generation, &[A, B, C]));
            for _ in 0..4 {
                *counts.entry(lease(&routes).backend().upstream.replica.clone()).or_default() += 1;
            }
        }
        assert!(counts.values().all(|count| (266..=268).contains(count)), "{counts:?}");
    }

    #[test]
    fn a_refusing_replica_is_asked_last_and_a_tried_one_never() {
        let routes = Routes::default();
        routes.apply(&table(1, &[A, B]));
        let bad = lease(&routes).backend().clone();
        bad.suspect();
        for _ in 0..4 {
            assert_ne!(lease(&routes).backend().key, bad.key);
        }
        let route = routes.find("shop").unwrap();
        let good = lease(&routes).backend().key;
        assert_eq!(routes.lease(&route, &[good]).unwrap().backend().key, bad.key);
        assert!(routes.lease(&route, &[good, bad.key]).is_none());
    }

    #[test]
    fn draining_counts_what_is_under_way_on_removed_replicas_only() {
        let routes = Routes::default();
        routes.apply(&table(1, &[A]));
        let (first, second) = (lease(&routes), lease(&routes));
        assert!(routes.draining().is_empty());
        routes.apply(&table(2, &[B]));
        assert_eq!(routes.generation(), 2);
        let address: SocketAddr = A.0.parse().unwrap();
        assert_eq!(routes.draining(), [(address, 2)].into());
        drop(first);
        assert_eq!(routes.draining(), [(address, 1)].into());
        drop(second);
        assert!(routes.draining().is_empty());
    }

    #[test]
    fn an_old_view_of_a_route_leads_to_the_new_replicas() {
        let routes = Routes::default();
        routes.apply(&table(1, &[A]));
        let old = routes.find("shop").unwrap();
        routes.apply(&table(2, &[B]));
        assert_eq!(routes.lease(&old, &[]).unwrap().backend().upstream.replica, "web.2");
        assert!(routes.draining().is_empty());
        routes.apply(&table(3, &[]));
        assert!(routes.lease(&old, &[]).is_none());
    }

    #[test]
    fn a_reused_address_has_a_pool_of_its_own() {
        let routes = Routes::default();
        let mut keys = Vec::new();
        // Another release, another replica, and the same one after an absence.
        for (generation, replicas) in
            [vec![A], vec![("10.0.0.1:80", "web.1", 2)], vec![("10.0.0.1:80", "web.2", 2)], vec![], vec![A]]
                .into_iter()
                .enumerate()
        {
            routes.apply(&table(generation as u64, &replicas));
            if !replicas.is_empty() {
                keys.push(lease(&routes).backend().key);
            }
        }
        assert_eq!(keys.iter().collect::<std::collections::BTreeSet<_>>().len(), 4, "{keys:?}");
    }

    #[test]
    fn counts_outlive_tables_and_those_of_who_departs_are_kept_apart() {
        let routes = Routes::default();
        routes.apply(&table(1, &[A]));
        routes.find("shop").unwrap().meter.count(200, Duration::from_millis(1), 5);
        routes.apply(&table(2, &[B]));
        assert_eq!((routes.counts()[&env()].classes[1], routes.departed().classes[1]), (1, 0));
        routes.apply(&RoutesTable { generation: 3, ..RoutesTable::default() });
        routes.apply(&table(4, &[A]));
        assert_eq!((routes.counts().len(), routes.departed().classes[1], routes.departed().bytes), (0, 1, 5));
    }

    #[test]
    fn a_host_of_an_unknown_environment_is_unknown() {
        let routes = Routes::default();
        routes.apply(&RoutesTable { environments: BTreeMap::new(), ..table(1, &[A]) });
        assert!(routes.find("shop").is_none());
    }

    #[test]
    fn no_lease_is_missed_by_a_concurrent_switch() {
        let routes = Arc::new(Routes::default());
        routes.apply(&table(0, &[A]));
        let stop = Arc::new(AtomicBool::new(false));
        let workers: Vec<_> = (0..2)
            .map(|_| {
                let (routes, stop) = (routes.clone(), stop.clone());
                std::thread::spawn(move || {
                    while !stop.load(SeqCst) {
                        let taken = lease(&routes);
                        // From here on the backend is in the table, or soon counted as draining.
                        let (key, address) = (taken.backend().key, taken.backend().upstream.address);
                        let current = || routes.find("shop").unwrap().backends.iter().any(|backend| backend.key == key);
                        let deadline = Instant::now() + Duration::from_secs(5);
                        while !current() && !routes.draining().contains_key(&address) {
                            assert!(Instant::now() < deadline, "a request under way is not counted");
                        }
                    }
                })
            })
            .collect();
        for generation in 1..2000 {
            routes.apply(&table(generation, &[[A, B, C][generation as usize % 3]]));
        }
        stop.store(true, SeqCst);
        for worker in workers {
            worker.join().unwrap();
        }
        assert!(routes.draining().is_empty());
    }
}
