//! Which events a reader wants. Pure.

use std::{fmt, str::FromStr};

use crate::domain::{AppRef, EnvRef, Event, EventKind, NameError, TenantName, cloud_event::TYPE_PREFIX};

/// Names further away than this (Jaro-Winkler) are not suggested.
const LIKENESS: f64 = 0.75;
/// Most kinds that a filter may name.
const MAX_KINDS: usize = 64;

/// Which events a reader wants; the default is all of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EventFilter {
    pub tenant: Option<TenantName>,
    pub app: Option<AppRef>,
    pub env: Option<EnvRef>,
    /// Any of these; all, if there are none.
    pub kinds: Vec<KindFilter>,
}

/// A kind, or all kinds of a family, as in `build.`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KindFilter(String);

/// Why texts are no filter; the message says what would be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FilterError {
    #[error(transparent)]
    Name(#[from] NameError),
    #[error(
        "there is no kind of event called {given:?}{hint}; write a kind (build.finished) or a family (build.): the families are {}",
        families()
    )]
    Kind { given: String, hint: String },
    #[error("{inner} is not of {outer}: leave one of both out")]
    Contradiction { inner: String, outer: String },
    #[error("a filter names at most {MAX_KINDS} kinds; name families, as in build.")]
    TooMany,
}

fn families() -> String {
    let mut families: Vec<&str> = EventKind::ALL.iter().map(|kind| kind.family()).collect();
    families.sort_unstable();
    families.dedup();
    families.join(", ")
}

impl FromStr for KindFilter {
    type Err = FilterError;

    /// `build.finished`, or all of a family: `build.`, `build.*`, `build`. A CloudEvent's type (`dev.berth.build.finished`) is as good.
    fn from_str(text: &str) -> Result<Self, FilterError> {
        let given = text.trim();
        let name = given.strip_prefix(TYPE_PREFIX).unwrap_or(given);
        if let Ok(kind) = name.parse::<EventKind>() {
            return Ok(Self(kind.name().to_owned()));
        }
        let family = name.strip_suffix(".*").or_else(|| name.strip_suffix('.')).unwrap_or(name);
        if EventKind::ALL.iter().any(|kind| kind.family() == family) {
            return Ok(Self(format!("{family}.")));
        }
        let score = |kind: &EventKind| strsim::jaro_winkler(name, kind.name());
        let nearest = EventKind::ALL.iter().max_by(|a, b| score(a).total_cmp(&score(b)));
        let hint = nearest.filter(|kind| score(kind) >= LIKENESS);
        let hint = hint.map_or_else(String::new, |kind| format!("; did you mean {kind}?"));
        Err(FilterError::Kind { given: given.chars().take(64).collect(), hint })
    }
}

impl fmt::Display for KindFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl KindFilter {
    fn takes(&self, kind: EventKind) -> bool {
        let name = kind.name();
        if self.0.ends_with('.') { name.starts_with(&self.0) } else { name == self.0 }
    }
}

impl EventFilter {
    /// A filter from texts: `acme`; `acme/shop` (`shop` alone with a tenant); `acme/shop/dev`; kinds, several in one text with commas
    /// between them. Empty texts count as none.
    ///
    /// # Errors
    /// See [`FilterError`].
    pub fn parse<'t>(
        tenant: Option<&str>,
        app: Option<&str>,
        env: Option<&str>,
        kinds: impl IntoIterator<Item = &'t str>,
    ) -> Result<Self, FilterError> {
        let given = |text: Option<&'_ str>| text.filter(|text| !text.is_empty()).map(str::to_owned);
        let tenant: Option<TenantName> = given(tenant).map(|text| text.parse()).transpose()?;
        let app = given(app).map(|text| match &tenant {
            Some(tenant) if !text.contains('/') => format!("{tenant}/{text}").parse::<AppRef>(),
            _ => text.parse(),
        });
        let env = given(env).map(|text| text.parse()).transpose()?;
        let kinds = kinds.into_iter().flat_map(|text| text.split(',')).filter(|text| !text.trim().is_empty());
        Self::new(tenant, app.transpose()?, env, kinds.map(str::parse).collect::<Result<_, _>>()?)
    }

    /// A filter, unless its parts contradict one another.
    ///
    /// # Errors
    /// See [`FilterError`].
    pub fn new(
        tenant: Option<TenantName>,
        app: Option<AppRef>,
        env: Option<EnvRef>,
        kinds: Vec<KindFilter>,
    ) -> Result<Self, FilterError> {
        if kinds.len() > MAX_KINDS {
            return Err(FilterError::TooMany);
        }
        if let (Some(env), Some(app)) = (&env, &app)
            && env.app_ref() != *app
        {
            return Err(FilterError::Contradiction { inner: env.to_string(), outer: app.to_string() });
        }
        let filter = Self { tenant: None, app, env, kinds };
        if let (Some(inner), Some(tenant)) = (filter.of_tenant(), &tenant)
            && inner != tenant
        {
            let inner = filter.env.as_ref().map(EnvRef::to_string).or(filter.app.as_ref().map(AppRef::to_string));
            return Err(FilterError::Contradiction { inner: inner.unwrap_or_default(), outer: tenant.to_string() });
        }
        Ok(Self { tenant, ..filter })
    }

    /// The one tenant whose events it takes, if it names one.
    pub fn of_tenant(&self) -> Option<&TenantName> {
        let by_app = self.app.as_ref().map(|app| &app.tenant);
        self.env.as_ref().map(|env| &env.tenant).or(by_app).or(self.tenant.as_ref())
    }

    /// Whether the reader wants this event.
    pub fn takes(&self, event: &Event) -> bool {
        self.of_tenant().is_none_or(|tenant| event.tenant.as_ref() == Some(tenant))
            && self.app.as_ref().is_none_or(|app| event.app.as_ref() == Some(&app.app))
            && self
                .env
                .as_ref()
                .is_none_or(|env| event.app.as_ref() == Some(&env.app) && event.env.as_ref() == Some(&env.env))
            && (self.kinds.is_empty() || self.kinds.iter().any(|kinds| kinds.takes(event.kind)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{EventData, Timestamp};

    fn event(kind: EventKind, place: &str) -> Event {
        let mut parts = place.split('/').filter(|part| !part.is_empty());
        Event {
            id: 1,
            at: Timestamp::UNIX_EPOCH,
            kind,
            tenant: parts.next().map(|name| name.parse().unwrap()),
            app: parts.next().map(|name| name.parse().unwrap()),
            env: parts.next().map(|name| name.parse().unwrap()),
            actor: None,
            message: String::new(),
            data: EventData::default(),
        }
    }

    #[test]
    fn what_a_filter_takes() {
        let places = ["acme/shop/dev", "acme/shop/prod", "acme/blog/dev", "acme", "other/shop/dev", ""];
        for (tenant, app, env, want) in [
            (None, None, None, "xxxxxx"),
            (Some("acme"), None, None, "xxxx.."),
            (None, Some("acme/shop"), None, "xx...."),
            (Some("acme"), Some("shop"), None, "xx...."),
            (None, None, Some("acme/shop/dev"), "x....."),
            (Some("acme"), Some("acme/shop"), Some("acme/shop/dev"), "x....."),
            (Some(""), Some(""), Some(""), "xxxxxx"),
        ] {
            let filter = EventFilter::parse(tenant, app, env, []).unwrap();
            let takes = |place: &&str| if filter.takes(&event(EventKind::BuildQueued, place)) { 'x' } else { '.' };
            assert_eq!(places.iter().map(takes).collect::<String>(), want, "{filter:?}");
        }
    }

    #[test]
    fn kinds_and_families() {
        let kinds = [EventKind::BuildFinished, EventKind::BuildQueued, EventKind::DeploymentRolledBack];
        for (given, want) in [
            (&["build.finished"][..], "x.."),
            (&["build."], "xx."),
            (&["build"], "xx."),
            (&["build.*", "deployment.rolled_back"], "xxx"),
            (&["build.queued,deployment.", ""], ".xx"),
            (&["dev.berth.build.finished"], "x.."),
            (&["replica."], "..."),
            (&[], "xxx"),
        ] {
            let filter = EventFilter::parse(None, None, None, given.iter().copied()).unwrap();
            let takes = |kind: &EventKind| if filter.takes(&event(*kind, "acme")) { 'x' } else { '.' };
            assert_eq!(kinds.iter().map(takes).collect::<String>(), want, "{given:?}");
        }
    }

    #[test]
    fn what_is_no_filter_is_told_how_to_become_one() {
        let refused = |tenant, app, env, kind: &'static str| {
            EventFilter::parse(tenant, app, env, [kind]).expect_err("not refused").to_string()
        };
        for (text, want) in [
            (refused(None, None, None, "build.finish"), "did you mean build.finished?"),
            (refused(None, None, None, "xyz"), "the families are access, app, build"),
            (refused(Some("Acme"), None, None, ""), "lower-case"),
            (refused(None, Some("shop"), None, ""), "write it as TENANT/APP"),
            (refused(None, None, Some("acme/shop"), ""), "write it as TENANT/APP/ENV"),
            (refused(Some("acme"), Some("other/shop"), None, ""), "other/shop is not of acme"),
            (refused(None, Some("acme/blog"), Some("acme/shop/dev"), ""), "acme/shop/dev is not of acme/blog"),
        ] {
            assert!(text.contains(want), "{text}");
        }
        let many = vec!["build."; MAX_KINDS + 1];
        assert_eq!(EventFilter::parse(None, None, None, many), Err(FilterError::TooMany));
    }
}
