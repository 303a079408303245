// `npm run demo`: set-up and demo in one process, and no shell above it, so that a signal reaches whoever must clean up.
import '../setup.mjs';

const { register } = await import('tsx/esm/api');
register();
await import('./main.ts');
