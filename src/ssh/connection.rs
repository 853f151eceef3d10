//! What the parts of one connection share.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    Backend,
    admission::{Place, TurnedAway},
    gate::Gate,
};
use crate::commands::Caller;

/// One connection, as its handler and the server see it.
pub struct Connection {
    pub peer: SocketAddr,
    pub gate: Arc<Gate>,
    pub backend: Arc<dyn Backend>,
    /// Cancelled when the connection is gone.
    pub gone: CancellationToken,
    /// Cancelled when the client has been told to go.
    pub dismissed: CancellationToken,
    /// Cancelled when the server's time to shut down is over: sessions that outlive their connection end, too.
    pub stop: CancellationToken,
    /// Owns the sessions' tasks; some outlive the connection.
    pub tasks: TaskTracker,
    place: Mutex<Place>,
    logged_in: watch::Sender<bool>,
    sessions: watch::Sender<usize>,
}

impl Connection {
    pub fn new(
        peer: SocketAddr,
        backend: Arc<dyn Backend>,
        place: Place,
        tasks: TaskTracker,
        stop: CancellationToken,
    ) -> Self {
        Self {
            peer,
            gate: Arc::default(),
            backend,
            gone: CancellationToken::new(),
            dismissed: CancellationToken::new(),
            stop,
            tasks,
            place: Mutex::new(place),
            logged_in: watch::Sender::new(false),
            sessions: watch::Sender::new(0),
        }
    }

    /// The client has proved who it is; whether there is room for it is seen now.
    pub fn authenticated(&self, caller: &Caller) -> Result<(), TurnedAway> {
        self.place.lock().unwrap_or_else(PoisonError::into_inner).authenticated(caller)?;
        self.logged_in.send_replace(true);
        Ok(())
    }

    /// Returns once the client has proved who it is.
    pub async fn until_authenticated(&self) {
        // The sender is in self and cannot be gone.
        let _ = self.logged_in.subscribe().wait_for(|logged_in| *logged_in).await;
    }

    /// Returns once no session is running.
    pub async fn until_idle(&self) {
        let _ = self.sessions.subscribe().wait_for(|sessions| *sessions == 0).await;
    }

    /// Whether no session is running.
    pub fn is_idle(&self) -> bool {
        *self.sessions.borrow() == 0
    }

    /// Counts a session until the guard is dropped.
    pub fn session(self: &Arc<Self>) -> SessionGuard {
        self.sessions.send_modify(|sessions| *sessions += 1);
        SessionGuard(self.clone())
    }
}

/// See [`Connection::session`].
pub struct SessionGuard(Arc<Connection>);

impl Drop for SessionGuard {
    fn drop(&mut self) {
        self.0.sessions.send_modify(|sessions| *sessions -= 1);
    }
}
