// What anything but Bun gets when it imports the package: one line instead of a syntax error.
import { bunIsMissing } from './bun-is-missing.js';

throw new Error(`@authmesh/relay ${bunIsMissing()}`);
