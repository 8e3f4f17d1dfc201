// Waits until the probe gives something true.
export async function until(what, probe) {
    const deadline = Date.now() + 60_000;
    for (;;) {
        const value = await probe();
        if (value) return value;
        if (Date.now() > deadline) throw new Error(`${what}: not within a minute`);
        await new Promise((resolve) => setTimeout(resolve, 50));
    }
}
