// `npm run demo`: set-up and demo in one process, so that a signal to it reaches the one that must clean up.
import '../setup.mjs';

const { register } = await import('tsx/esm/api');
register();
await import('./main.ts');
