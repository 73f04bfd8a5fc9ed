#!/bin/sh
":" //# ; command -v bun >/dev/null 2>&1 && exec bun "$0" "$@"; exec node "$0" "$@"

// sh reads the line above and starts Bun on this file, wherever there is one; Node only gets to say what it lacks.
import { bunIsMissing } from './bun-is-missing.js';

const problem = bunIsMissing();
if (problem) {
  console.error(`amesh-relay: ${problem}`);
  process.exit(1);
}
await import('../src/cli.ts');
