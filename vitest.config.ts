import { defineConfig } from 'vitest/config';

/** A project whose files talk to real servers, started once a run. They wait more than they work: three files at once. */
function withServers(name: string, testTimeout: number, groupOrder: number, maxWorkers = 3) {
  return {
    test: {
      name,
      include: [`test/${name}/**/*.test.ts`],
      globalSetup: ['test/support/run-servers.ts'],
      testTimeout,
      hookTimeout: 120_000,
      maxWorkers,
      sequence: { groupOrder },
    },
  };
}

export default defineConfig({
  test: {
    reporters: ['default', './test/support/closing-line.ts'],
    projects: [
      // Why so long: hundreds of random cases on a machine that may be busy with something else.
      { test: { name: 'unit', include: ['test/unit/**/*.test.ts'], testTimeout: 60_000 } },
      withServers('integration', 60_000, 1),
      withServers('faults', 120_000, 2, 4),
      withServers('e2e', 180_000, 3),
    ],
  },
});
