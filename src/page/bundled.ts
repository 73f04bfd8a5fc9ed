/** The page's script. A macro builds it while the relay is bundled, so the bundle contains it and needs no sources. */
import { buildPageScript } from './build.ts' with { type: 'macro' };

export const script: string | Promise<string> = buildPageScript();
