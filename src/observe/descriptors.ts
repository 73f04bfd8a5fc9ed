/** File descriptors of this process, as Linux tells them. Elsewhere they are not known, and count as 0 and unlimited. */
import { readdirSync, readFileSync } from 'node:fs';

/** How many are open. */
export function openDescriptors(): number {
  try {
    return readdirSync('/proc/self/fd').length;
  } catch {
    return 0;
  }
}

/** How many may be open. Bun raises the soft limit to the hard one when it starts. */
export function maxDescriptors(): number {
  try {
    const limits = readFileSync('/proc/self/limits', 'utf8');
    return Number(/^Max open files\s+(\d+)/m.exec(limits)?.[1] ?? Infinity);
  } catch {
    return Infinity;
  }
}
