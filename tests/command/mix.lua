-- For wrk: one request in five writes. Counts what was answered, and says it at the end, for all threads.
local n = 0
local threads = {}

function setup(thread)
    table.insert(threads, thread)
end

function init(args)
    written = 0
    bad = 0
end

function request()
    n = n + 1
    return wrk.format("GET", n % 5 == 0 and "/write" or "/read")
end

function response(status, headers, body)
    if status ~= 200 then
        bad = bad + 1
    elseif body == "written" then
        written = written + 1
    end
end

function done(summary, latency, requests)
    local w, b = 0, 0
    for _, thread in ipairs(threads) do
        w = w + thread:get("written")
        b = b + thread:get("bad")
    end
    local e = summary.errors
    print(string.format("RESULT requests=%d written=%d bad=%d connect=%d read=%d write=%d timeout=%d longest_ms=%d",
        summary.requests, w, b, e.connect, e.read, e.write, e.timeout, latency.max / 1000))
end
