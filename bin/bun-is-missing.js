/** Plain JavaScript that any runtime reads: what is missing here, in one line, or undefined where all is well. */
export function bunIsMissing() {
  const needed = '>=1.4.4';
  const how =
    'install it from https://bun.com/docs/installation, or with "npm install --global bun"';
  if (typeof Bun === 'undefined')
    return `needs Bun ${needed}, and this is Node.js ${process.version}; ${how}`;
  if (Bun.semver.satisfies(Bun.version, needed)) return undefined;
  return `needs Bun ${needed}, and this is ${Bun.version}; ${how}`;
}
