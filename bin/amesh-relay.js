#!/bin/sh
":" //# ; command -v bun >/dev/null 2>&1 && exec bun --env-file=/dev/null --config=/dev/null "$0" "$@"; exec node "$0" "$@"

// The shell runs the line above: it starts Bun on this file, so that neither the .env nor the bunfig.toml of the current
// folder is read. Where there is no Bun, Node says so. To JavaScript, that line is a string and a comment.
import { bunIsMissing } from './bun-is-missing.js';

const problem = bunIsMissing();
if (problem) {
  console.error(`amesh-relay: ${problem}`);
  process.exit(1);
}
await import('../src/cli.ts');
