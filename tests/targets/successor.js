// Blocks its loop for 0.4 s when it gets SIGUSR2. Prints `ready node`.

const word = new Int32Array(new SharedArrayBuffer(4));

function waitsInNode() {
    Atomics.wait(word, 0, 0, 400);
}

process.on("SIGUSR2", () => waitsInNode());
setInterval(() => {}, 50);
console.log("ready node");
