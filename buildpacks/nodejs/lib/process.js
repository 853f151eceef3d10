// process.js BUILD_DIR MANAGER PNP: prints the command of the default web process, nothing when there is none.
'use strict'
const fs = require('fs')
const path = require('path')

const [dir, manager, pnp] = process.argv.slice(2)
const { scripts = {} } = JSON.parse(fs.readFileSync(path.join(dir, 'package.json'), 'utf8').replace(/^\uFEFF/, ''))
const startsWithNode = (command) => /^\s*(?:[A-Za-z_]\w*=\S*\s+)*node\s/.test(command)

// The script itself where that means the same as letting the package manager run it: the process starts sooner, and
// signals reach it without middlemen.
const needsManager = /[\n\r]|npm_(config|lifecycle|execpath|node|package_(?!name|version|json))/
const direct = (command) => !scripts.prestart && !scripts.poststart && !needsManager.test(command) && (!pnp || startsWithNode(command))

if (typeof scripts.start === 'string' && scripts.start.trim()) {
  console.log(direct(scripts.start) ? scripts.start.trim() : `${manager} start`)
} else if (fs.existsSync(path.join(dir, 'server.js'))) {
  console.log('node server.js')
}
