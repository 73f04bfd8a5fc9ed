/** The page's script, built when this module is: so a bundle of the relay carries it, and needs no sources. */
import { buildPageScript } from './build.ts' with { type: 'macro' };

export const script: string | Promise<string> = buildPageScript();
