-- Posts the bodies of a file in turn, a line each; the last line of the output is one JSON object.
local bodies, at = {}, 0

function init(arguments)
    if arguments[1] then
        for line in io.lines(arguments[1]) do
            bodies[#bodies + 1] = wrk.format("POST", nil, { ["Content-Type"] = "application/json" }, line)
        end
    end
end

function request()
    if #bodies == 0 then
        return wrk.format()
    end
    at = at % #bodies + 1
    return bodies[at]
end

function done(summary, latency, requests)
    local errors = summary.errors
    local failed = errors.connect + errors.read + errors.write + errors.status + errors.timeout
    -- How often each latency in microseconds came: rounds are put together from these.
    local counts = {}
    for i = 1, #latency do
        counts[i] = string.format("[%d, %d]", latency(i))
    end
    io.write(string.format(
        '\n{"p50": %d, "p99": %d, "p99.9": %d, "requests": %d, "duration": %d, "failed": %d, "counts": [%s]}\n',
        latency:percentile(50), latency:percentile(99), latency:percentile(99.9),
        summary.requests, summary.duration, failed,
        table.concat(counts, ", ")
    ))
end
