//! Forms for actions, as pages show them.

use askama::Template;

use super::{
    actions::{Action, Field, Kind},
    session::Visitor,
    shell::encode,
};

/// A form for an action, or what leads to one.
#[derive(Debug)]
pub(super) struct Form {
    action: &'static Action,
    values: Vec<(String, String)>,
    word: String,
    look: Look,
    /// What a field of text may be meant to say, by its name.
    suggestions: Vec<(&'static str, Vec<String>)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Look {
    /// All fields that nothing was said of are to be filled in.
    Whole,
    /// A button and nothing else: everything is said.
    Button,
    /// A link to a page of its own, where one is asked whether one is sure.
    Link,
}

impl Form {
    /// For who may do that; none for others.
    pub(super) fn offered(visitor: &Visitor, action: &str, values: &[(&str, &str)]) -> Option<Self> {
        let action = Action::named(action)?;
        let tenant = values.iter().find(|(name, _)| *name == "tenant").map(|(_, value)| *value);
        action.needs.are_met(visitor, tenant).then(|| Self::new(visitor, action, values))
    }

    pub(super) fn new(visitor: &Visitor, action: &'static Action, values: &[(&str, &str)]) -> Self {
        let values = values.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Self { action, values, word: visitor.secret.form_word(), look: Look::Whole, suggestions: Vec::new() }
    }

    /// Only the button; for what should be thought about, a link to where one is asked.
    pub(super) fn button(self) -> Self {
        let look = if self.action.warning.is_some() { Look::Link } else { Look::Button };
        Self { look, ..self }
    }

    /// A link to where it is filled in.
    pub(super) fn linked(self) -> Self {
        Self { look: Look::Link, ..self }
    }

    /// With what a field of text may be meant to say. Nothing is filled in: who has not said it has not meant it.
    pub(super) fn suggesting(mut self, field: &'static str, texts: Vec<String>) -> Self {
        self.suggestions.push((field, texts));
        self
    }

    fn suggested(&self, name: &str) -> &[String] {
        self.suggestions.iter().find(|(field, _)| *field == name).map_or(&[], |(_, texts)| texts)
    }

    fn value(&self, name: &str) -> &str {
        self.values.iter().rev().find(|(known, _)| known == name).map_or("", |(_, value)| value)
    }

    /// What is sent without being shown.
    fn hidden(&self) -> Vec<&(String, String)> {
        let shown = |name: &str| self.look == Look::Whole && self.action.fields.iter().any(|field| field.name == name);
        self.values.iter().filter(|(name, _)| !shown(name) && !name.starts_with(COUNT)).collect()
    }

    fn fields(&self) -> &'static [Field] {
        if self.look == Look::Whole { &self.action.fields } else { &[] }
    }

    /// Numbers by process type.
    fn counts(&self) -> Vec<(&str, &str, &str)> {
        let of = self
            .values
            .iter()
            .filter_map(|(name, value)| Some((name.as_str(), name.strip_prefix(COUNT)?, value.as_str())));
        of.collect()
    }

    /// Tells this control from all others on a page, the same each time that the page is made: it goes by what the form is about, not by
    /// what is filled in.
    fn id(&self, field: &str) -> String {
        let about: Vec<String> = self.hidden().into_iter().map(|(_, value)| encode(value)).collect();
        format!("{}-{field}-{}", self.action.name, about.join("/"))
    }

    /// What a button says to who cannot see what stands beside it.
    fn label(&self) -> String {
        let about = ["version", "user", "id"].into_iter().map(|name| self.value(name)).find(|value| !value.is_empty());
        match about {
            Some(about) => format!("{} {about}", self.action.verb),
            None => self.action.verb.to_owned(),
        }
    }

    /// Where one is asked whether one is sure.
    fn link(&self) -> String {
        let query: Vec<String> =
            self.values.iter().map(|(name, value)| format!("{}={}", encode(name), encode(value))).collect();
        format!("/do/{}?{}", self.action.name, query.join("&"))
    }

    /// What it is about, for a page of its own.
    pub(super) fn about(&self) -> Vec<(&str, String)> {
        let places = ["tenant", "app", "env"].map(|name| self.value(name));
        let place = places.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("/");
        let others = self.values.iter().filter(|(name, value)| {
            let filled_in = self.action.fields.iter().any(|field| field.name == *name);
            !value.is_empty()
                && !filled_in
                && !name.starts_with(COUNT)
                && !["tenant", "app", "env"].contains(&name.as_str())
        });
        let others = others.map(|(name, value)| (if name == "id" { "what" } else { name.as_str() }, value.clone()));
        Some(("of", place)).filter(|(_, place)| !place.is_empty()).into_iter().chain(others).collect()
    }

    pub(super) fn title(&self) -> &'static str {
        self.action.title
    }

    fn is_button(&self) -> bool {
        self.look == Look::Button
    }

    fn is_link(&self) -> bool {
        self.look == Look::Link
    }

    /// What has to be typed before what cannot be undone is done.
    fn confirmation(&self) -> Option<String> {
        let names = self.action.confirm?;
        Some(names.iter().map(|name| self.value(name)).collect::<Vec<_>>().join("/"))
    }

    fn is_upload(&self) -> bool {
        self.action.fields.iter().any(|field| field.kind == Kind::File)
    }

    /// Sent with it, so that a form that is sent twice does its work once.
    fn key(&self) -> String {
        format!("{:032x}", rand::random::<u128>())
    }
}

/// What numbers of process types are called in forms, before the type.
pub(super) const COUNT: &str = "count.";

#[derive(Template)]
#[template(path = "form.html", config = "src/console/askama.toml")]
struct FormTemplate<'f> {
    form: &'f Form,
}

impl std::fmt::Display for Form {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        FormTemplate { form: self }.render_into(f).map_err(|_| std::fmt::Error)
    }
}

// What it writes comes of a template, which has escaped everything.
impl askama::filters::HtmlSafe for Form {}
